"""The measurements of a scaling study: one cell for every model, strategy, rights, budget, setting
and split. Settings are tuned on validation problems, equally many for all ways of the same rights;
`auto`'s plan is chosen among more chains than that. The test problems are only measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.evals.curves import pack, rights
from jaxzero.evals.evaluate import evaluate
from jaxzero.evals.plan import BINS, Candidate, chains, make_plan
from jaxzero.evals.settings import RIGHTS, Way, effort, further, grid, search_arguments, ways
from jaxzero.progress import Bar
from jaxzero.recipes.cells import Cells
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import charge_evaluation
from jaxzero.recipes.thinkers import Thinker, foresee, of_stage, scored
from jaxzero.search.budget import Budget
from jaxzero.search.plan import Plan
from jaxzero.search.request import ONE_TRY
from jaxzero.search.strategies import STRATEGIES
from jaxzero.tasks.base import Problem, Task

_PLANNED = ("mcts", "best_of_n")
"""Strategies that `auto`'s plan is made of, beside a greedy try."""


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
    if not self.budgets or self.budgets[0] < 1 or sorted(set(self.budgets)) != list(self.budgets):
      raise UserError(
        f"--budgets {' '.join(map(str, self.budgets))} must be rising multiples of the mean "
        "episode, each at least 1."
      )
    for name, choices in (("strategies", STRATEGIES), ("rights", RIGHTS)):
      unknown = [one for one in getattr(self, name) if one not in choices]
      if unknown or not getattr(self, name):
        raise UserError(
          f"--{name} {' '.join(unknown) or 'without a name'} is unknown; choose among "
          f"{', '.join(choices)}."
        )
    if "auto" in self.strategies and self.validation_problems < BINS:
      raise UserError(
        f"--validation-problems {self.validation_problems} make no {BINS} bins for the plan of "
        f"auto; give at least {BINS}, or leave auto out of --strategies."
      )
    if not 0 <= self.seed < 2**20:
      raise UserError(f"--seed {self.seed} must lie in 0..{2**20 - 1}.")


class Study:
  """What is measured on one run. `progress` is told of every cell, measured or read.

  Raises:
    UserError: what the run cannot be asked, before anything is measured.
  """

  def __init__(self, run: Run, config: ScaleConfig):
    self.run, self.config = run, config
    self.cells = Cells(run.folder / "scale")
    self.before, self.final = of_stage(run, "pretrain"), of_stage(run, "self_play")
    self.thinkers = {"none": self.final, "value": self.final}
    if run.task.self_checkable:
      self.thinkers["verifier"] = self.final
    if (run.folder / "prm.json").exists():
      self.thinkers["prm"] = scored(run, self.final)
    offered = tuple(one for one in RIGHTS if one in self.thinkers)
    self.ways = ways(config.strategies, tuple(one for one in offered if one in config.rights))
    if not self.ways:
      raise UserError(
        f"--strategies {' '.join(config.strategies)} --rights {' '.join(config.rights)} leave "
        f"nothing to measure: {run.folder} offers the rights {', '.join(offered)}."
      )
    self.problems = {
      "validation": run.task.problems("validation", 0, config.validation_problems),
      "test": run.task.problems("test", 0, config.problems),
    }
    self.others = {name: self._other(name) for name in config.transfer}
    self.plans: dict[Way, dict[str, Any]] = {}
    self.budgets: list[int] = []  # of `config.budgets`, in forward tokens; known after `set_unit`
    self.progress: Bar

  def _other(self, name: str) -> tuple[Task, list[Problem]]:
    """Another task of the same sizes, and its test problems, whose prompts the model can hold."""
    task = tasks.make(dataclasses.replace(self.run.experiment.task, name=name))
    problems = task.problems("test", 0, self.config.problems)
    self.final.on(task).engine.encode(problems, len(problems))
    return task, problems

  def set_unit(self) -> float:
    """Measures the mean sampled episode, in tokens, and sets the budgets by it."""
    unit = self.measure(self.final, Way("sample"), "validation")["forward_tokens_per_problem"]
    self.budgets = [max(1, round(unit * multiple)) for multiple in self.config.budgets]
    Budget(max(self.budgets))
    return unit

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

  def tune(self, way: Way) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The setting of the best validation accuracy (of equal ones the cheapest), and all tried."""
    if way.strategy == "auto":
      return {"plan": self.plan(way)["plan"]}, []
    settings = grid(way)
    if len(settings) == 1:
      return settings[0], []
    tried = self._tried(way, settings)
    tried += self._tried(way, further(way, _best(tried)["setting"]))
    return _best(tried)["setting"], [figures(row) for row in tried]

  def _tried(self, way: Way, settings: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    thinker = self.thinkers[way.rights]
    return [self.measure(thinker, way, "validation", self._middle, one) for one in settings]

  def curve(self, way: Way, setting: dict[str, Any]) -> list[dict[str, Any]]:
    """A way's cells on the test problems, by budget; one try is one cell."""
    thinker = self.thinkers[way.rights]
    if way.strategy in ONE_TRY:
      return [self.measure(thinker, way, setting=setting)]
    return [
      {**self.measure(thinker, way, "test", budget, setting), "multiple": multiple}
      for multiple, budget in zip(self.config.budgets, self.budgets, strict=True)
    ]

  def plan(self, way: Way) -> dict[str, Any]:
    """`auto`'s plan under these rights: {"plan", "tried", "wanted", "solved", "tokens"}: how many
    chains of approaches a bin could get, and of the validation problems it was made from how many
    best-of-N solves on the largest budget, and the plan, for how many forward tokens each."""
    if way not in self.plans:
      thinker, largest = self.thinkers[way.rights], max(self.budgets)
      settings = {n: self.tune(Way(n, way.rights))[0] for n in _PLANNED}
      of_bin = chains(way.rights == "verifier", settings, self.budgets)
      rows = [
        self.measure(thinker, way, "validation", largest, {"plan": Plan((chain,)).to_dict()})
        for chain in of_bin
      ]
      best_of_n = Way("best_of_n", way.rights)
      target = self.measure(thinker, best_of_n, "validation", largest, settings["best_of_n"])[
        "solved"
      ]
      plan, found = make_plan(
        foresee(thinker, self.problems["validation"]),
        [
          Candidate(chain, rights(row), np.asarray(row["tokens"]))
          for chain, row in zip(of_bin, rows, strict=True)
        ],
        target,
      )
      self.plans[way] = {
        "plan": plan.to_dict(),
        "tried": len(of_bin),
        "wanted": target,
        "solved": found.solved,
        "tokens": found.tokens / len(self.problems["validation"]),
      }
    return self.plans[way]

  def success(self) -> np.ndarray:
    """[problems] share of samples that were right, of samples that serve nothing else."""
    seeds = range(2**20, 2**20 + self.config.difficulty_samples)
    rows = [self.measure(self.final, Way("sample"), seed=seed) for seed in seeds]
    return np.mean([rights(row) for row in rows], axis=0)

  def work(self, larger: bool) -> float:
    """Thousands of forward tokens that all cells may take, for the progress bar."""
    config, longest = self.config, self.run.engine.max_tokens
    validation, test = config.validation_problems, config.problems
    once = sum(way.strategy in ONE_TRY for way in self.ways)
    once += config.difficulty_samples + 2 + 2 * len(config.transfer)
    once += 2 * larger
    total = once * test * longest
    for way in self.ways:
      if way.strategy not in ONE_TRY:
        total += test * sum(self.budgets)
        if way.strategy == "auto":
          options = chains(way.rights == "verifier", {}, self.budgets)
          tried = sum(effort(Way(name, way.rights)) for name in _PLANNED)
          total += validation * (max(self.budgets) * (len(options) + 1) + self._middle * tried)
        else:
          total += validation * self._middle * effort(way)
    return total / 1000

  @property
  def _middle(self) -> int:
    """The budget at which settings are tried."""
    return self.budgets[len(self.budgets) // 2]


def _best(tried: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """Of equally accurate ones the cheapest."""
  return max(tried, key=lambda row: (row["accuracy"], -row["forward_tokens_per_problem"]))


def figures(row: Mapping[str, Any]) -> dict[str, Any]:
  """A cell without the single problems' outcomes, which its file keeps."""
  return {name: value for name, value in row.items() if name not in ("right", "tokens")}
