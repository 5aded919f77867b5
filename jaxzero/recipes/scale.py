"""What thinking and training bought: every strategy at every budget on one finished run.

Each measurement is a cell (`jaxzero.recipes.cells`), so a study that was stopped goes on where it
was. Settings are tuned on validation problems, equally many for every way of thinking; the test
problems are only measured.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.evals.curves import BINS, by_bin, compare, pack, rank_bins, rights, trend
from jaxzero.evals.evaluate import evaluate
from jaxzero.evals.settings import ONE_TRY, RIGHTS, Way, grid, search_arguments, ways
from jaxzero.evals.stats import paired_bootstrap
from jaxzero.files import PathLike, as_path
from jaxzero.parallel.hosts import is_primary
from jaxzero.progress import Bar, bar
from jaxzero.recipes.cells import Cells
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, load_experiment, write_json
from jaxzero.recipes.stages import charge_evaluation
from jaxzero.recipes.thinkers import Rival, Thinker, of_stage, read_prm, scored, train_flops
from jaxzero.search.strategies import STRATEGIES
from jaxzero.tasks.base import Problem
from jaxzero.view.pictures import write_pictures
from jaxzero.view.report import write_report


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
    self.before, self.final = of_stage(run, "pretrain"), of_stage(run, "self_play")
    self.thinkers = {"none": self.final, "value": self.final}
    if run.task.self_checkable:
      self.thinkers["verifier"] = self.final
    self.prm = read_prm(run)
    if self.prm is not None:
      self.thinkers["prm"] = scored(run, self.final, self.prm)
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
    length = run.engine.max_tokens * config.validation_problems / 1000
    with bar("the mean episode", total=length, unit="k tokens") as self.progress:
      unit = self.measure(self.final, Way("sample"), "validation")["forward_tokens_per_problem"]
    self.budgets = [max(1, round(unit * multiple)) for multiple in config.budgets]
    with bar("scaling study", total=self._work(), unit="k tokens") as self.progress:
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
      "prm": self.prm,
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
    thinker = self.thinkers[way.rights]
    tried = [self.measure(thinker, way, "validation", self._middle, one) for one in settings]
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

  def _describe(
    self,
    way: Way,
    rows: list[dict[str, Any]],
    setting: dict[str, Any],
    tried: list[dict[str, Any]],
    bins: np.ndarray,
  ) -> dict[str, Any]:
    """A way's entry in scale.json."""
    return {
      "strategy": way.strategy,
      "rights": way.rights,
      "setting": setting,
      "tried": tried,
      "points": [{**_figures(row), "by_bin": by_bin(row, bins)} for row in rows],
      "trend": trend(rows, self.config.seed) if len(rows) > 1 else None,
    }

  def _comparisons(self, rows: Mapping[Way, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Tree search, and the best of N, against all else that has the same rights or none."""
    return [
      {
        "strategy": way.strategy,
        "rights": way.rights,
        "against": other.strategy,
        "points": compare(rows[way], rows[other], self.config.seed),
      }
      for way in rows
      if way.strategy in ("mcts", "best_of_n")
      for other in rows
      if other != way and other.rights in (way.rights, "none") and other.strategy not in ONE_TRY
    ]

  def _against_larger(self, rows: Mapping[Way, list[dict[str, Any]]]) -> dict[str, Any] | None:
    """The larger model's greedy answers, and each of the small one's searches against them."""
    if self.larger is None:
      return None
    rival = self.larger
    greedy = self.measure(rival.thinker, Way("greedy"))
    small = self.measure(self.final, Way("greedy"))
    return {
      "parameters": rival.parameters,
      "train_flops": rival.train_flops,
      "test": _figures(greedy),
      "small": {
        "parameters": self.final.identity["parameters"],
        "train_flops": train_flops(self.run.ledger, "self_play"),
        "test": _figures(small),
      },
      "points": [
        {
          "strategy": way.strategy,
          "rights": way.rights,
          "budget": row["budget"],
          "accuracy": row["accuracy"],
          "forward_tokens_per_problem": row["forward_tokens_per_problem"],
          "flops_per_problem": row["flops_per_problem"],
          **paired_bootstrap(rights(row), rights(greedy), self.config.seed),
        }
        for way, of_way in rows.items()
        for row in of_way
      ],
    }

  def _transfer(self, name: str) -> dict[str, Any]:
    """Both stages' greedy answers to another task's test problems."""
    run = self.run
    task = tasks.make(dataclasses.replace(run.experiment.task, name=name))
    problems = task.problems("test", 0, self.config.problems)
    rows = {}
    for stage, thinker in (("pretrain", self.before), ("self_play", self.final)):
      rows[stage] = self.measure(thinker.on(task), Way("greedy"), problems=problems)
    change = paired_bootstrap(*(rights(rows[s]) for s in ("self_play", "pretrain")), seed=0)
    return {"task": name, **{s: _figures(row) for s, row in rows.items()}, "change": change}

  def _train_time(self, ends: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracy by cumulative training FLOPs, pre-training and self-play told apart.

    ends: greedy on the test problems after pre-training and after self-play.
    """
    run = self.run
    stages = {"pretrain": "pretrain", "round": "self_play"}
    before = train_flops(run.ledger, "pretrain")
    after = train_flops(run.ledger, "self_play")
    return {
      "flops": {"pretrain": before, "self_play": after - before},
      "validation": [
        {
          "stage": stages[row["kind"]],
          "flops": row["flops"],
          "accuracy": row["validation_accuracy"],
        }
        for row in run.metrics
        if row["kind"] in stages and "validation_accuracy" in row
      ],
      "test": [
        {"stage": stage, "flops": flops, **_figures(row)}
        for stage, flops, row in zip(("pretrain", "self_play"), (before, after), ends, strict=True)
      ],
    }

  def _work(self) -> float:
    """Thousands of forward tokens that all cells may take, for the progress bar."""
    config, longest = self.config, self.run.engine.max_tokens
    validation, test = config.validation_problems, config.problems
    once = sum(way.strategy in ONE_TRY for way in self.ways)
    once += config.difficulty_samples + 2 + 2 * len(config.transfer)
    once += 2 * (self.larger is not None)
    total = once * test * longest
    for way in self.ways:
      if way.strategy not in ONE_TRY:
        tried = len(grid(way)) if len(grid(way)) > 1 else 0
        total += test * sum(self.budgets) + validation * self._middle * tried
    return total / 1000

  @property
  def _middle(self) -> int:
    """The budget at which settings are tried."""
    return self.budgets[len(self.budgets) // 2]


def _figures(row: Mapping[str, Any]) -> dict[str, Any]:
  """A cell without the single problems' outcomes, which its file keeps."""
  return {name: value for name, value in row.items() if name not in ("right", "tokens")}


def _same_task(experiment: Experiment, larger: Rival) -> None:
  mine, other = (
    dataclasses.replace(task, worked_examples=0) for task in (experiment.task, larger.task)
  )
  if mine != other:
    raise UserError(
      f"the larger run solves {other.name} (numbers={other.numbers}, max_number={other.max_number}"
      f"), this one {mine.name} (numbers={mine.numbers}, max_number={mine.max_number}); give a "
      "larger run of the same task."
    )
