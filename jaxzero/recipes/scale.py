"""What thinking and training bought: every strategy at every budget on one finished run.

Each measurement is a cell (`jaxzero.recipes.cells`), so a study that was stopped goes on where it
was. Settings are tuned on validation problems, equally many for every way of thinking; the test
problems are only measured.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.evals.curves import BINS, by_bin, compare, pack, rank_bins, rights, trend
from jaxzero.evals.evaluate import evaluate
from jaxzero.evals.settings import ONE_TRY, RIGHTS, Way, grid, search_arguments, ways
from jaxzero.evals.stats import paired_bootstrap
from jaxzero.files import PathLike, as_path, read_bytes
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import is_primary
from jaxzero.progress import Bar, bar
from jaxzero.recipes.cells import Cells
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, load_experiment, write_json
from jaxzero.recipes.stages import charge_evaluation, load_params
from jaxzero.search.engine import Engine
from jaxzero.search.play import PlayConfig
from jaxzero.search.strategies import STRATEGIES
from jaxzero.tasks.base import Problem
from jaxzero.view.pictures import write_pictures
from jaxzero.view.report import write_report

_TRAINED_BY = {
  "pretrain": ("pretrain",),
  "self_play": ("pretrain", "selfplay", "learn"),
  "control": ("pretrain", "control"),
}
"""Ledger entries whose FLOPs made a stage's model."""


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
  """What is measured."""

  problems: int = 500
  """Of the test split."""
  validation_problems: int = 128
  """Settings and the plan of `auto` are chosen by these."""
  budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  """Multiples of the mean sampled episode; settings are tried at the middle one."""
  strategies: tuple[str, ...] = STRATEGIES
  rights: tuple[str, ...] = RIGHTS
  """Who may say which answer is given; what task or run cannot offer is left out."""
  difficulty_samples: int = 16
  """Samples a test problem by which it is shown as easy or hard."""
  transfer: tuple[str, ...] = ()
  """Other tasks to evaluate the run's stages on."""
  seed: int = 0

  def check(self) -> None:
    """Raises UserError for a study that cannot run."""
    for name in ("problems", "validation_problems", "difficulty_samples"):
      if getattr(self, name) < 1:
        raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1.")
    if len(self.budgets) < 1 or min(self.budgets) < 1 or len(set(self.budgets)) < len(self.budgets):
      raise UserError(
        f"--budgets {' '.join(map(str, self.budgets))} must be different multiples of the mean "
        "episode, each at least 1."
      )
    for name, choices in (("strategies", STRATEGIES), ("rights", RIGHTS)):
      unknown = [one for one in getattr(self, name) if one not in choices]
      if unknown or not getattr(self, name):
        raise UserError(
          f"--{name} {' '.join(unknown) or 'without a name'} is unknown; choose among "
          f"{', '.join(choices)}."
        )
    if not 0 <= self.seed < 2**20:
      raise UserError(f"--seed {self.seed} must lie in 0..{2**20 - 1}.")


class Finished(Protocol):
  """What `jaxzero.load` gives."""

  experiment: Experiment
  params: Params
  engine: Engine
  stage: str
  step: int


@dataclasses.dataclass(frozen=True)
class Thinker:
  """A model that problems are given to."""

  engine: Engine
  params: Params
  play: PlayConfig
  batch_size: int
  identity: dict[str, Any]  # what its cells are keyed by
  step: int


@dataclasses.dataclass(frozen=True)
class Rival:
  """A larger model, whose greedy answers the small one's searches are compared with."""

  thinker: Thinker
  task: Any  # its TaskConfig
  parameters: int
  train_flops: float

  @classmethod
  def of(cls, loaded: Finished, folder: PathLike) -> Rival:
    """A run that `jaxzero.load(folder)` has loaded."""
    experiment, engine = loaded.experiment, loaded.engine
    parameters = experiment.model.parameters(engine.tokenizer.vocab_size)
    identity = {"stage": loaded.stage, "parameters": parameters, "seed": experiment.seed}
    config = experiment.evaluation
    thinker = Thinker(
      engine, loaded.params, experiment.test_play, config.batch_size, identity, loaded.step
    )
    ledger = json.loads(read_bytes(as_path(folder) / "ledger.json"))
    return cls(thinker, experiment.task, parameters, _train_flops(ledger, loaded.stage))


def scale(folder: PathLike, config: ScaleConfig, larger: Rival | None = None) -> dict[str, Any]:
  """Measures a finished run; returns what RUN/scale.json holds (docs/cli.md).

  Cells are in RUN/scale/, pictures beside them, and the report is written again.

  Raises:
    UserError: a study that cannot run, an unfinished run, a larger one of another task.
  """
  config.check()
  experiment = load_experiment(folder)
  if not (as_path(folder) / "results" / "self_play.json").exists():
    raise UserError(
      f"the run at {folder} has not finished its self-play; let `jaxzero quickstart` or "
      "`jaxzero train` finish it first."
    )
  if larger is not None:
    _same_task(experiment, larger)
  with Run(folder, experiment) as run:
    run.go_on()
    result = _Study(run, config, larger).result()
    write_json(run.folder / "scale.json", result)
    if is_primary():
      write_pictures(result, run.folder / "scale")
      write_report(run.folder)
  return result


class _Study:
  """The measurements of one run."""

  def __init__(self, run: Run, config: ScaleConfig, larger: Rival | None):
    self.run, self.config, self.larger = run, config, larger
    self.cells = Cells(run.folder / "scale")
    self.before, self.final = self._thinker("pretrain"), self._thinker("self_play")
    self.thinkers = {"none": self.final, "value": self.final}
    if run.task.self_checkable:
      self.thinkers["verifier"] = self.final
    if (run.folder / "prm.json").exists():
      self.thinkers["prm"] = self._scored()
    offered = tuple(one for one in config.rights if one in self.thinkers)
    self.ways = ways(config.strategies, offered)
    self.problems = {
      "validation": run.task.problems("validation", 0, config.validation_problems),
      "test": run.task.problems("test", 0, config.problems),
    }
    self.progress: Bar

  def result(self) -> dict[str, Any]:
    """Everything, measured or read."""
    run, config, begin = self.run, self.config, time.monotonic()
    with bar("scaling study", total=self._work(), unit="k tokens") as self.progress:
      unit = self.measure(self.final, Way("sample"), "validation")["forward_tokens_per_problem"]
      self.budgets = [max(1, round(unit * multiple)) for multiple in config.budgets]
      success = self._success()
      bins = rank_bins(success)
      rows: dict[Way, list[dict[str, Any]]] = {}
      tuned = {way: self._tune(way) for way in self.ways}
      for way in self.ways:
        rows[way] = self._curve(way, tuned[way][0])
      larger = self._against_larger(rows)
      stages = [self.measure(one, Way("greedy")) for one in (self.before, self.final)]
      transfer = [self._transfer(name) for name in config.transfer]
    described = [self._describe(way, rows[way], *tuned[way], bins) for way in self.ways]
    return {
      "task": run.task.name,
      "run_seed": run.experiment.seed,
      "seed": config.seed,
      "stage": "self_play",
      "step": self.final.step,
      "parameters": self.final.identity["parameters"],
      "problems": config.problems,
      "validation_problems": config.validation_problems,
      "unit_tokens": unit,
      "multiples": list(config.budgets),
      "budgets": self.budgets,
      "ways": described,
      "comparisons": self._comparisons(rows),
      "difficulty": {
        "samples": config.difficulty_samples,
        "bins": [
          {
            "bin": number,
            "problems": int((bins == number).sum()),
            "success": float(success[bins == number].mean()),
          }
          for number in range(BINS)
          if (bins == number).any()
        ],
      },
      "train_time": self._train_time(stages),
      "larger": larger,
      "transfer": transfer,
      "prm": self._prm_grades(),
      "ledger": run.ledger,
      "wall_s": time.monotonic() - begin,
    }

  def measure(
    self,
    thinker: Thinker,
    way: Way,
    split: str = "test",
    budget: int | None = None,
    setting: Mapping[str, Any] | None = None,
    seed: int | None = None,
    problems: Sequence[Problem] | None = None,
  ) -> dict[str, Any]:
    """One cell: an eval object with the outcomes of all problems (`curves.pack`), `rights`,
    `setting` and `cell`, its file; default: the longest completion as budget, no setting."""
    given = self.problems[split] if problems is None else problems
    budget = thinker.engine.max_tokens if budget is None else budget
    setting, seed = dict(setting or {}), self.config.seed if seed is None else seed
    key = {
      "task": thinker.engine.task.name,
      "strategy": way.strategy,
      "rights": way.rights,
      "budget": budget,
      "split": split,
      "problems": len(given),
      "setting": setting,
      "seed": seed,
      "model": {**thinker.identity, "step": thinker.step},
    }
    self.progress.describe(f"scaling study, {way.name} at {budget}")
    row = self.cells.get(
      key, lambda: self._evaluated(thinker, way, given, split, budget, setting, seed)
    )
    self.progress.advance(len(given) * budget / 1000)
    return {**row, "setting": setting, "rights": way.rights, "cell": self.cells.path(key).name}

  def _evaluated(
    self,
    thinker: Thinker,
    way: Way,
    problems: Sequence[Problem],
    split: str,
    budget: int,
    setting: dict[str, Any],
    seed: int,
  ) -> dict[str, Any]:
    self.run.stop_point("a cell of the study, which will be measured again")
    arguments = search_arguments(way, setting, thinker.play)
    with self.run.goodput.phase("evaluate"):
      result, results = evaluate(
        thinker.engine,
        thinker.params,
        problems,
        budget=budget,
        seed=seed,
        split=split,
        step=thinker.step,
        batch_size=min(thinker.batch_size, len(problems)),
        **arguments,
      )
    charge_evaluation(self.run, result)
    self.run.commit()
    return {**result, **pack([r.right for r in results], [r.forward_tokens for r in results])}

  def _tune(self, way: Way) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The setting of the best validation accuracy (of equal ones the cheapest), and all tried."""
    settings = grid(way)
    if len(settings) == 1:
      return settings[0], []
    budget, thinker = self.budgets[len(self.budgets) // 2], self.thinkers[way.rights]
    tried = [self.measure(thinker, way, "validation", budget, one) for one in settings]
    best = max(tried, key=lambda row: (row["accuracy"], -row["forward_tokens_per_problem"]))
    return best["setting"], [_figures(row) for row in tried]

  def _curve(self, way: Way, setting: dict[str, Any]) -> list[dict[str, Any]]:
    thinker = self.thinkers[way.rights]
    if way.strategy in ONE_TRY:
      return [self.measure(thinker, way, setting=setting)]
    return [
      {**self.measure(thinker, way, "test", budget, setting), "multiple": multiple}
      for multiple, budget in zip(self.config.budgets, self.budgets, strict=True)
    ]

  def _success(self) -> np.ndarray:
    """[problems] share of samples that were right, of samples that serve nothing else."""
    seeds = range(2**20, 2**20 + self.config.difficulty_samples)
    rows = [self.measure(self.final, Way("sample"), seed=seed) for seed in seeds]
    return np.mean([rights(row) for row in rows], axis=0)
