"""The whole study of thinking on a budget, in resumable cells: what every target of the recipe got.

  python -m benchmarks.recipe --folder runs/recipe --seeds 0 1 2

trains the runs it needs, measures them and prints the tables of RESULTS.md as Markdown. A part that
is done is read; one that was stopped goes on where it was, so several processes may share the work
by `--parts` and `--seeds`. Finished runs may be put into the folder under the names that it uses
(model0, small0, large0, ...): they are not trained again. Parts, each needing those before it:

  base        `--model` learns the task: pre-training, self-play
  prm         its process reward model, and its grades
  scale       every strategy at every budget, `auto` and its plan, by the PRM where there is one
  larger      `--small` with search against `--large` answering greedily
  distill     students of `--model`'s and of `--small`'s shape from the data set of `--large`
  curriculum  self-play on problems that are nearly solved, for the FLOPs of the base's self-play
  transfer    what the base's training did to `--other`, from part scale
  rules       search distillation, expert iteration and GRPO at equal FLOPs (benchmarks/rules.py)
  flops       the ledger's FLOPs beside those that XLA counts (benchmarks/flops.py)

Seeds are not pooled as if they were other problems: a problem's outcome is the share of seeds that
solved it, and intervals come from a bootstrap over problems. Where training is compared, every
seed's accuracy is shown, too.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import platform
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

import jaxzero
from benchmarks import flops, rules, tables
from jaxzero.errors import UserError
from jaxzero.evals.curves import pack
from jaxzero.evals.evaluate import evaluate
from jaxzero.files import make_folder, write_atomic
from jaxzero.learn.lessons import DistillConfig
from jaxzero.recipes import quickstart
from jaxzero.recipes.cells import Cells
from jaxzero.recipes.distill import TeacherRun, distill
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.improve import improve
from jaxzero.recipes.prm import PrmConfig, train_prm
from jaxzero.recipes.run import Run, load_experiment
from jaxzero.recipes.scale import scale
from jaxzero.recipes.stages import load_params
from jaxzero.recipes.study import ScaleConfig
from jaxzero.recipes.thinkers import Rival, fingerprint

PARTS = (
  "base", "prm", "scale", "larger", "distill", "curriculum", "transfer", "rules", "flops"
)  # fmt: skip
LESSONS = {
  "paths": DistillConfig(targets="paths"),
  "trees": DistillConfig(targets="trees"),
  "both": DistillConfig(targets="both"),
  "examples": DistillConfig(supervised_share=1.0),
}
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


class Clock:
  """Wall time by part over all sessions; a killed one loses no more than what went on just then."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.path = folder / f"{time.time_ns()}-{os.getpid()}.json"
    self.seconds: dict[str, float] = {}

  @contextlib.contextmanager
  def of(self, part: str) -> Iterator[None]:
    self.part, self.begin = part, time.monotonic()
    try:
      yield
    finally:
      self.tick()

  def tick(self) -> None:
    """Writes down what has passed until now."""
    now = time.monotonic()
    self.seconds[self.part] = self.seconds.get(self.part, 0.0) + now - self.begin
    self.begin = now
    make_folder(self.folder)
    write_atomic(self.path, json.dumps(self.seconds))

  def total(self) -> dict[str, float]:
    """Seconds of every part, by all sessions."""
    sessions = [json.loads(path.read_text()) for path in self.folder.glob("*.json")]
    parts = [part for part in PARTS if any(part in one for one in sessions)]
    return {part: sum(one.get(part, 0.0) for one in sessions) for part in parts}


class Recipe:
  """The study's folder, and its parts."""

  def __init__(self, arguments: argparse.Namespace):
    self.folder, self.seeds = arguments.folder, arguments.seeds
    self.cells, self.clock = Cells(self.folder / "cells"), Clock(self.folder / "sessions")
    self.configs = {
      name: read_config(getattr(arguments, name), arguments.task)
      for name in ("model", "small", "large")
    }
    self.rules_flops, self.rules_settings = arguments.rules_flops, arguments.rules_settings
    mine = self.configs["model"].task.name
    self.scale_config = ScaleConfig(
      problems=arguments.problems,
      validation_problems=arguments.validation_problems,
      transfer=(arguments.other or ("countdown" if mine == "arithmetic" else "arithmetic"),),
    )

  def run(self, kind: str, seed: int) -> pathlib.Path:
    return self.folder / f"{kind}{seed}"

  def once(self, key: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a piece of work; key: all that it depends on."""
    value = self.cells.get(key, work)
    self.clock.tick()
    return value

  # Parts: each prints what it found.

  def base(self) -> None:
    stages = {"after pre-training": "pretrain", "after self-play": "self_play"}
    arms = {
      name: [self.greedy(self.trained("model", seed), stage) for seed in self.seeds]
      for name, stage in stages.items()
    }
    tables.arms("Base", arms, against=("after pre-training",))

  def trained(self, kind: str, seed: int) -> pathlib.Path:
    """A run of this kind of model, its self-play finished: here, or before it was put here."""
    folder, config = self.run(kind, seed), self._seeded(kind, seed)
    if (folder / "results" / "self_play.json").exists():
      _must_be(folder, config, kind)
      return folder
    self.once({"trained here": folder.name}, dict)
    with Run(folder, config) as run:
      for stage in (quickstart.supervised, quickstart.self_play):
        run.stage(stage.__name__, lambda stage=stage: stage(run))
        self.clock.tick()
    return folder

  def brought(self) -> float:
    """Seconds that training took where it was done before a run was put here."""
    runs = [self.run(kind, seed) for kind in self.configs for seed in self.seeds]
    paths = [
      run / "results" / f"{stage}.json"
      for run in runs
      if not self.cells.has({"trained here": run.name})
      for stage in ("supervised", "self_play")
    ]
    return sum(json.loads(p.read_text())["books"]["seconds"] for p in paths if p.exists())

  def _seeded(self, kind: str, seed: int) -> Experiment:
    return dataclasses.replace(self.configs[kind], seed=seed)

  def prm(self) -> None:
    tables.prm({seed: self._rewarded(seed)["grades"] for seed in self.seeds})

  def _rewarded(self, seed: int) -> dict[str, Any]:
    """What prm.json says of the base's process reward model."""
    folder = self.trained("model", seed)
    path = folder / "prm.json"
    if path.exists():
      return json.loads(path.read_text())
    found = train_prm(folder, PrmConfig())
    self.clock.tick()
    return found

  def scale(self) -> None:
    folders = [self.trained("model", seed) for seed in self.seeds]
    records = [self._scaled(folder) for folder in folders]
    pooled = tables.pooled(folders, records)
    tables.curves(self.folder, pooled, records[0]["multiples"])
    tables.auto(pooled, records[0])

  def _scaled(self, folder: pathlib.Path, larger: pathlib.Path | None = None) -> dict[str, Any]:
    def work() -> dict[str, Any]:
      rival = None if larger is None else Rival.of(jaxzero.load(larger), larger)
      return scale(folder, self.scale_config, rival)

    key = {"part": "scale", "run": identity(folder), "config": _fields(self.scale_config)}
    return self.once({**key, "larger": larger and identity(larger)}, work)

  def larger(self) -> None:
    small, large = (
      [self.trained(kind, seed) for seed in self.seeds] for kind in ("small", "large")
    )
    records = [self._scaled(*pair) for pair in zip(small, large, strict=True)]
    tables.larger(small, records)

  def distill(self) -> None:
    for kind in ("model", "small"):
      students = {
        lesson: [self._student(kind, lesson, seed) for seed in self.seeds] for lesson in LESSONS
      }
      tables.arms(
        f"Distillation: students of the shape of `{kind}`",
        students,
        against=("paths", "examples"),
        entries=("teacher", "distill"),
      )

  def _student(self, kind: str, lesson: str, seed: int) -> dict[str, Any]:
    folder, out = self.trained("large", seed), self.folder / f"student-{kind}-{lesson}{seed}"
    config = dataclasses.replace(LESSONS[lesson], seed=seed)
    shape = self._seeded(kind, seed)

    def work() -> dict[str, Any]:
      loaded = jaxzero.load(folder)
      experiment, stage, step = loaded.experiment, loaded.stage, loaded.step
      teacher = TeacherRun(folder, experiment, loaded.engine, loaded.params, stage, step)
      return distill(teacher, shape, config, out)

    key = {"part": "distill", "student": kind, "lesson": _fields(config)}
    self.once({**key, "shape": fingerprint(shape), "teacher": identity(folder)}, work)
    return self.greedy(out)

  def curriculum(self) -> None:
    arms: dict[str, list[dict[str, Any]]] = {"all problems": [], "nearly solved": []}
    for seed in self.seeds:
      base = self.trained("model", seed)
      arms["all problems"].append(self.greedy(base))
      arms["nearly solved"].append(self.greedy(self._nearly_solved(base, seed)))
    against = ("all problems",)
    tables.arms("Curriculum, at equal FLOPs", arms, against, entries=("selfplay", "learn"))

  def _nearly_solved(self, base: pathlib.Path, seed: int) -> pathlib.Path:
    """The base's pre-training, then a curriculum for the FLOPs that the base's self-play took."""
    branch, ledger = self.run("curriculum", seed), _ledger(base)
    most = sum(ledger[name]["flops"] for name in ("selfplay", "learn"))
    config = rules.changed(load_experiment(base), {"self_play.curriculum": True})
    rules.branch(base, branch, config)
    with Run(branch, config) as run:

      def self_play() -> dict[str, Any]:
        params = improve(run, load_params(run, "pretrain", best=True), most)
        steps = (run.metrics[-1]["round"] + 1) * config.improve.steps_per_round
        return {"test": quickstart.test_accuracy(run, params, steps)}

      run.stage("supervised", lambda: quickstart.supervised(run))
      run.stage("self_play", self_play)
    self.clock.tick()
    return branch

  def transfer(self) -> None:
    folders = [self.trained("model", seed) for seed in self.seeds]
    tables.transfer({f.name: self._scaled(f)["transfer"] for f in folders})

  def rules(self) -> None:
    bases = [self.trained("model", seed) for seed in self.seeds]
    rules.study(self.folder / "rules", bases, self.rules_flops, self.rules_settings)

  def flops(self) -> None:
    tables.flops({kind: flops.ratios(config) for kind, config in self.configs.items()})

  def greedy(self, folder: pathlib.Path, stage: str | None = None) -> dict[str, Any]:
    """A run's greedy answers to the test problems: an eval object with all outcomes, and the run's
    `ledger`."""
    count = self.scale_config.problems

    def work() -> dict[str, Any]:
      run = jaxzero.load(folder, stage)
      problems = run.engine.task.problems("test", 0, count)
      result, results = evaluate(
        run.engine, run.params, problems, "greedy", run.engine.max_tokens, step=run.step
      )
      return {**result, **pack([r.right for r in results], [r.forward_tokens for r in results])}

    model = {name: value for name, value in identity(folder).items() if name != "prm"}
    row = self.once({"greedy": model, "stage": stage, "problems": count}, work)
    return {**row, "ledger": _ledger(folder)}


def read_config(path: pathlib.Path, task: str | None) -> Experiment:
  """A config file's experiment; task: the name of another, whose task and lengths it gets."""
  config = runpy.run_path(str(path))["config"]
  if task is None:
    return config
  other = read_config(CONFIGS / f"{task}.py", None)
  return rules.changed(
    config,
    {
      "task": other.task,
      "max_prompt": other.max_prompt,
      "self_play.play.max_tokens": other.self_play.play.max_tokens,
    },
  )


def identity(folder: pathlib.Path) -> dict[str, Any]:
  """What tells a run's model from every other: its config, how its training ended, its PRM."""

  def digest(*names: str) -> str | None:
    found = [(folder / name).read_bytes() for name in names if (folder / name).exists()]
    return hashlib.sha256(b"".join(found)).hexdigest()[:12] if found else None

  return {
    "run": folder.name,
    "config": fingerprint(load_experiment(folder)),
    "training": digest(*(f"results/{s}.json" for s in ("supervised", "self_play", "distill"))),
    "prm": digest("prm.json"),
  }


def _must_be(folder: pathlib.Path, wanted: Experiment, kind: str) -> None:
  """UserError for a run, put into the folder, of another model or task than the study's."""

  def about(config: Experiment) -> dict[str, Any]:
    lengths = config.max_prompt, config.self_play.play.max_tokens
    return {"task": config.task, "model": config.model, "seed": config.seed, "lengths": lengths}

  there, here = about(load_experiment(folder)), about(wanted)
  different = [name for name in here if there[name] != here[name]]
  if different:
    raise UserError(
      f"{folder} is a run of another {' and '.join(different)} than this study's; give its config "
      f"as --{kind}, or use another --folder."
    )


def _fields(config: Any) -> dict[str, Any]:
  return dataclasses.asdict(config)


def _ledger(folder: pathlib.Path) -> dict[str, dict[str, float]]:
  return json.loads((folder / "ledger.json").read_text())


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.recipe",
    description=__doc__,
    formatter_class=argparse.RawTextHelpFormatter,
  )
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
  parser.add_argument("--task", help="a config of configs/ whose task all models learn")
  parser.add_argument("--model", type=pathlib.Path, default=CONFIGS / "micro.py")
  parser.add_argument("--small", type=pathlib.Path, default=CONFIGS / "nano.py")
  parser.add_argument("--large", type=pathlib.Path, default=CONFIGS / "quickstart.py")
  parser.add_argument(
    "--other", help="the task of part transfer; default: arithmetic, or countdown"
  )
  parser.add_argument("--rules-flops", type=float, default=2.5e11, help="of each rule's cells")
  parser.add_argument("--rules-settings", type=int, default=8, help="tried for each rule")
  parser.add_argument("--problems", type=int, default=500)
  parser.add_argument("--validation-problems", type=int, default=128)
  return parser.parse_args(arguments)


def main() -> None:
  arguments = parse()
  recipe = Recipe(arguments)
  versions = f"jax {jax.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
  command = " ".join(["python -m benchmarks.recipe", *sys.argv[1:]])
  print(
    f"`{command}`, {time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, "
    f"{jax.devices()[0].device_kind}, {versions}"
  )
  for part in PARTS:
    if part in arguments.parts:
      with recipe.clock.of(part):
        getattr(recipe, part)()
  tables.wall_time(recipe.clock.total(), recipe.brought())


if __name__ == "__main__":
  main()
