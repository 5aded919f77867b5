"""The models that a study gives problems to: a run's stages, alone or beside its process reward
model, and another run's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_bytes
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, param_targets
from jaxzero.parallel.hosts import by_primary
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, config_dict, from_dict
from jaxzero.recipes.stages import load_params
from jaxzero.search.engine import Engine
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import Task, TaskConfig

_TRAINED_BY = {
  "pretrain": ("pretrain",),
  "self_play": ("pretrain", "selfplay", "learn"),
  "control": ("pretrain", "control"),
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


class Finished(Protocol):
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
  parameters: int
  train_flops: float

  @classmethod
  def of(cls, loaded: Finished, folder: PathLike) -> Rival:
    """The run that `jaxzero.load(folder)` has loaded."""
    experiment = loaded.experiment
    thinker = _thinker(experiment, loaded.engine, loaded.params, loaded.stage, loaded.step)
    ledger = json.loads(read_bytes(as_path(folder) / "ledger.json"))
    parameters = thinker.identity["parameters"]
    return cls(thinker, experiment.task, parameters, train_flops(ledger, loaded.stage))


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
      "config": hashlib.sha256(
        json.dumps(config_dict(experiment), sort_keys=True).encode()
      ).hexdigest()[:12],
    },
  )


def read_prm(run: Run) -> dict[str, Any] | None:
  """RUN/prm.json, or None; UserError where it was trained with another tokenizer."""
  path = run.folder / "prm.json"
  try:
    prm = by_primary(lambda: json.loads(read_bytes(path)) if path.exists() else None)
    model = prm and from_dict(ModelConfig, prm["model"])
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} is damaged; train it again with `jaxzero prm {run.folder}`."
    ) from error
  if model and prm["tokenizer"] != run.tokenizer.fingerprint:
    raise UserError(
      f"the process reward model of {run.folder} reads another tokenizer; train it again with "
      f"`jaxzero prm {run.folder}`."
    )
  return prm


def scored(run: Run, policy: Thinker, prm: Mapping[str, Any]) -> Thinker:
  """A policy with the run's process reward model beside it."""
  shape = from_dict(ModelConfig, dict(prm["model"]))
  checkpoints = Checkpoints(run.folder / "checkpoints" / "prm", keep_best=True)
  step = by_primary(checkpoints.best)
  if step is None:
    raise UserError(
      f"the process reward model of {run.folder} has no checkpoint; train it again with `jaxzero "
      f"prm {run.folder}`."
    )
  target = param_targets(shape, run.tokenizer.vocab_size, run.mesh)
  params = {"policy": policy.params, "prm": checkpoints.restore(step, target)["params"]}
  identity = {**policy.identity, "prm_step": step, "prm_labels": prm.get("labels")}
  return dataclasses.replace(
    policy, engine=policy.engine.scored(shape), params=params, identity=identity
  )


def train_flops(ledger: Mapping[str, Mapping[str, float]], stage: str) -> float:
  """FLOPs that made a stage's model, whatever went before it included."""
  entries = _TRAINED_BY.get(stage, ("pretrain", stage))
  return sum(ledger.get(name, {}).get("flops", 0.0) for name in entries)
