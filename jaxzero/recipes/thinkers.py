"""The models that a study gives problems to: a run's stages, alone or beside its process reward
model, and another run's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from etils import epath
from jax.sharding import Mesh

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_bytes
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, param_targets
from jaxzero.parallel.hosts import by_primary
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, config_dict, from_dict
from jaxzero.recipes.stages import load_params
from jaxzero.search import foresee as foresight
from jaxzero.search.engine import Engine
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import Problem, Task, TaskConfig
from jaxzero.tokenizers import Tokenizer

_TRAINED_BY = {
  "pretrain": ("pretrain",),
  "self_play": ("pretrain", "selfplay", "learn"),
  "control": ("pretrain", "control"),
  "distill": ("teacher", "distill"),
}
"""Ledger entries whose FLOPs made a stage's model."""


@dataclasses.dataclass(frozen=True)
class Thinker:
  """A model that problems are given to."""

  engine: Engine
  params: Params
  play: PlayConfig
  batch_size: int
  step: int
  identity: dict[str, Any]  # what its measurements are keyed by

  def on(self, task: Task) -> Thinker:
    """The same model before another task."""
    mine = self.engine
    engine = Engine(
      mine.model, mine.tokenizer, task, mine.mesh, mine.max_prompt, mine.max_tokens, mine.scorer
    )
    return dataclasses.replace(self, engine=engine)


class Loaded(Protocol):
  """What `jaxzero.load` gives."""

  @property
  def experiment(self) -> Experiment: ...
  @property
  def params(self) -> Params: ...
  @property
  def engine(self) -> Engine: ...
  @property
  def stage(self) -> str: ...
  @property
  def step(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class Rival:
  """A larger model, whose greedy answers a small one's searches are compared with."""

  thinker: Thinker
  task: TaskConfig
  seed: int
  parameters: int
  train_flops: float

  @classmethod
  def of(cls, loaded: Loaded, folder: PathLike) -> Rival:
    """The run that `jaxzero.load(folder)` has loaded; UserError where its ledger is damaged."""
    experiment = loaded.experiment
    thinker = _thinker(experiment, loaded.engine, loaded.params, loaded.stage, loaded.step)
    path = as_path(folder) / "ledger.json"
    try:
      ledger = json.loads(read_bytes(path))
    except (FileNotFoundError, ValueError) as error:
      raise UserError(
        f"{path} is missing or damaged, so nobody knows what training that run took; let its own "
        "command finish."
      ) from error
    parameters = thinker.identity["parameters"]
    flops = train_flops(ledger, loaded.stage)
    return cls(thinker, experiment.task, experiment.seed, parameters, flops)


def of_stage(run: Run, stage: str) -> Thinker:
  """The best of pre-training (`pretrain`), or the last of `self_play`."""
  best = stage == "pretrain"
  checkpoints = Checkpoints(run.folder / "checkpoints" / stage, keep_best=best)
  step = by_primary(lambda: checkpoints.best() if best else checkpoints.latest)
  params = load_params(run, stage, best=best)
  return _thinker(run.experiment, run.engine, params, stage, step)


def _thinker(
  experiment: Experiment, engine: Engine, params: Params, stage: str, step: int
) -> Thinker:
  return Thinker(
    engine,
    params,
    experiment.test_play,
    experiment.evaluation.batch_size,
    step,
    {
      "stage": stage,
      "parameters": experiment.model.parameters(engine.tokenizer.vocab_size),
      "config": fingerprint(experiment),
    },
  )


def fingerprint(experiment: Experiment) -> str:
  """Twelve hex digits that tell configs apart."""
  text = json.dumps(config_dict(experiment), sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:12]


def reward_model(
  folder: epath.Path, tokenizer: Tokenizer, mesh: Mesh
) -> tuple[ModelConfig, Params, int]:
  """A run's process reward model: its shape, its best parameters on a mesh, and their step.

  Raises:
    UserError: the run has none, or one that reads another tokenizer's tokens.
  """
  checkpoints, path = Checkpoints(folder / "checkpoints" / "prm"), folder / "prm.json"
  step = by_primary(checkpoints.best)
  if step is None or not path.exists():
    raise UserError(f"{folder} has no process reward model; train one with `jaxzero prm {folder}`.")
  try:
    trained = json.loads(read_bytes(path))
    fingerprint, model = str(trained["tokenizer"]), from_dict(ModelConfig, trained["model"])
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f"{path} is damaged or of another version ({error}).") from error
  if fingerprint != tokenizer.fingerprint:
    raise UserError(
      f"the process reward model of {folder} reads the tokens of tokenizer {fingerprint[:8]}, the "
      f"run's is {tokenizer.fingerprint[:8]}; train one with `jaxzero prm {folder}`."
    )
  target = param_targets(model, tokenizer.vocab_size, mesh)
  return model, checkpoints.restore(step, target)["params"], step


def scored(run: Run, policy: Thinker) -> Thinker:
  """A run's policy with its process reward model beside it."""
  model, prm, step = reward_model(run.folder, run.tokenizer, run.mesh)
  return dataclasses.replace(
    policy,
    engine=policy.engine.scored(model),
    params={"policy": policy.params, "prm": prm},
    identity={
      **policy.identity,
      "prm": hashlib.sha256(read_bytes(run.folder / "prm.json")).hexdigest()[:12],
      "prm_step": step,
    },
  )


def foresee(thinker: Thinker, problems: Sequence[Problem]) -> np.ndarray:
  """[n] float32: P(right) where each prompt ends; the prompts alone are read."""
  return foresight.foresee(thinker.engine, thinker.params, problems, thinker.batch_size)[0]


def train_flops(ledger: Mapping[str, Mapping[str, float]], stage: str, prm: bool = False) -> float:
  """FLOPs that made a stage's model, whatever went before it included: of a student what its
  teacher was asked, not the teacher's own training. prm: and its process reward model, labels and
  grades included."""
  entries = (*_TRAINED_BY[stage], "prm") if prm else _TRAINED_BY[stage]
  return sum(ledger.get(name, {}).get("flops", 0.0) for name in entries)
