"""`jaxzero.load(RUN)`: a finished run's model, tokenizer and config in one line."""

from __future__ import annotations

import dataclasses
import functools
import json
import statistics

from etils import epath

from jaxzero import tasks
from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_bytes
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, param_targets
from jaxzero.parallel.mesh import make_mesh
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import load_experiment
from jaxzero.recipes.thinkers import reward_model
from jaxzero.search.choose import Choice
from jaxzero.search.config import Lanes
from jaxzero.search.engine import Engine
from jaxzero.search.plan import Plan
from jaxzero.search.request import SearchResult, hears_verifier
from jaxzero.search.strategies import search
from jaxzero.tasks.transcript import encode_completion
from jaxzero.tokenizers import Tokenizer

STAGES = ("pretrain", "self_play", "control", "distill")


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """A run's newest model, ready to think."""

  folder: epath.Path
  experiment: Experiment
  tokenizer: Tokenizer
  params: Params
  engine: Engine
  stage: str
  step: int

  @property
  def model(self) -> ModelConfig:
    return self.experiment.model

  @functools.cached_property
  def mean_worked(self) -> float:
    """Mean tokens of the completions of the run's first 64 worked examples."""
    config = self.experiment
    count = min(64, config.task.worked_examples)
    problems = self.engine.task.problems("train", config.seed, count)
    worked = [self.engine.task.worked_example(problem) for problem in problems]
    return statistics.mean(len(encode_completion(self.tokenizer, one)) for one in worked)

  def scored(self) -> LoadedRun:
    """This run with its process reward model beside the policy, whose values it replaces.

    Raises:
      UserError: the run has no reward model, or one that reads another tokenizer's tokens.
    """
    model, prm, _ = reward_model(self.folder, self.tokenizer, self.engine.mesh)
    params = {"policy": self.params, "prm": prm}
    return dataclasses.replace(self, params=params, engine=self.engine.scored(model))

  def plan(self, choice: Choice = Choice()) -> Plan | None:
    """How `auto` thinks here, as `jaxzero scale` found out for whoever judges; None: not measured.

    Raises:
      UserError: RUN/plan.json is damaged.
    """
    path = self.folder / "plan.json"
    if self.stage != "self_play" or not path.exists():
      return None
    heard = hears_verifier(self.engine, "auto", None, choice)
    rights = "verifier" if heard else "value" if self.engine.scorer is None else "prm"
    try:
      plans = dict(json.loads(read_bytes(path)))
    except (ValueError, TypeError) as error:
      raise UserError(f"{path} is damaged; make it again with `jaxzero scale`.") from error
    return Plan.from_dict(plans[rights]) if rights in plans else None

  def solve(
    self,
    prompt: str,
    strategy: str = "mcts",
    budget: int = 512,
    seed: int = 0,
    choice: Choice = Choice(),
    samples: int | None = None,
    lanes: Lanes = Lanes(),
    accept: float | None = None,
  ) -> SearchResult:
    """Answers one problem, such as "2 5 6 = 32"; see `search` for what the words mean.

    Raises:
      UserError: the text is no problem, or the problem has no solution.
    """
    problem = self.engine.task.parse(prompt)
    if not self.engine.task.solvable(problem, ""):
      raise UserError(f"{problem.prompt!r} has no solution; give another target or other numbers.")
    play = self.experiment.test_play
    return search(
      self.engine,
      self.params,
      [problem],
      strategy,
      budget,
      seed,
      play,
      batch_size=1,
      choice=choice,
      samples=samples,
      lanes=lanes,
      accept=accept,
      plan=self.plan(choice),
    )[0]


def load(folder: PathLike, stage: str | None = None) -> LoadedRun:
  """Loads a run's newest parameters onto the devices at hand, whatever it was trained on.

  Args:
    folder: the run.
    stage: `pretrain` (its best), `self_play`, `control` or `distill`; default: the furthest one.

  Raises:
    UserError: no run there, no checkpoint yet, or a damaged one.
  """
  if stage not in (None, *STAGES):
    raise UserError(f"stage {stage!r} is unknown; choose one of {', '.join(STAGES)}.")
  place = as_path(folder)
  experiment = load_experiment(folder)
  # A run made on a pod's mesh loads on one machine: all its devices become data shards.
  mesh = make_mesh(dataclasses.replace(experiment.mesh, data=0, fsdp=1, tensor=1))
  tokenizer = Tokenizer.load(place / "tokenizer")
  names = (stage,) if stage else ("self_play", "distill", "pretrain")
  for name in names:
    checkpoints = Checkpoints(place / "checkpoints" / name)
    step = checkpoints.latest if name == "self_play" else checkpoints.best()
    if step is None:
      continue
    target = param_targets(experiment.model, tokenizer.vocab_size, mesh)
    loaded = checkpoints.restore(step, target)
    engine = Engine(
      experiment.model,
      tokenizer,
      tasks.make(experiment.task),
      mesh,
      experiment.max_prompt,
      experiment.self_play.play.max_tokens,
    )
    train_step = int(loaded["data"]["step"])
    return LoadedRun(place, experiment, tokenizer, loaded["params"], engine, name, train_step)
  raise UserError(
    f"{folder} has no checkpoint of {' or '.join(names)} yet; let `jaxzero quickstart --run "
    f"{folder}` reach one."
  )
