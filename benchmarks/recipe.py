"""The whole study of thinking on a budget, in resumable cells: what every target of the recipe got.

  python benchmarks/recipe.py --folder runs/recipe --seeds 0 1 2

trains the runs it needs, measures them and prints the tables of RESULTS.md as Markdown. A part that
is done is read; one that was stopped goes on where it was, so several processes may share the work
by `--parts` and `--seeds`. Parts, each needing those before it:

  base        `--model` learns the task: pre-training, self-play
  prm         its process reward model, and its grades
  scale       every strategy at every budget, `auto` and its plan, by the PRM where there is one
  larger      `--small` with search against `--large` answering greedily
  distill     students of `--model`'s shape from the data set of `--large`
  curriculum  self-play on problems that are nearly solved, beside the base
  transfer    what the base's training did to `--other`, from part scale
  rules       search distillation, expert iteration and GRPO at equal FLOPs (benchmarks/rules.py)
  flops       the ledger's FLOPs beside those that XLA counts

Seeds are pooled: a problem's outcome is the share of seeds that solved it, and intervals come from
a bootstrap over problems.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import platform
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

import jaxzero
from jaxzero.evals.curves import pack, rights, token_ratio
from jaxzero.evals.evaluate import evaluate
from jaxzero.evals.stats import log_budget_trend, paired_bootstrap, wilson
from jaxzero.files import write_atomic
from jaxzero.recipes import quickstart
from jaxzero.recipes.cells import Cells
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, config_dict
from jaxzero.recipes.scale import scale
from jaxzero.recipes.study import ScaleConfig
from jaxzero.recipes.thinkers import Rival

PARTS = (
  "base", "prm", "scale", "larger", "distill", "curriculum", "transfer", "rules", "flops"
)  # fmt: skip
LESSONS = ("paths", "trees", "examples")
CONFIGS = pathlib.Path(__file__).parents[1] / "configs"


class Recipe:
  """The study's folder, and its parts."""

  def __init__(self, arguments: argparse.Namespace):
    self.folder, self.seeds = arguments.folder, arguments.seeds
    self.cells = Cells(self.folder / "cells")
    self.configs = {
      name: self._config(getattr(arguments, name), arguments.task)
      for name in ("model", "small", "large")
    }
    self.rules_flops = arguments.rules_flops
    mine = self.configs["model"].task.name
    self.scale_config = ScaleConfig(
      problems=arguments.problems,
      validation_problems=arguments.validation_problems,
      transfer=(arguments.other or ("countdown" if mine == "arithmetic" else "arithmetic"),),
    )

  def _config(self, path: pathlib.Path, task: str | None) -> Experiment:
    config = runpy.run_path(str(path))["config"]
    return config if task is None else dataclasses.replace(config, task=self._config(
      CONFIGS / f"{task}.py", None
    ).task)  # fmt: skip

  def run(self, kind: str, seed: int) -> pathlib.Path:
    return self.folder / f"{kind}{seed}"

  def once(self, part: str, seed: int, work: Callable[[], Any]) -> Any:
    """A part of one seed: done once, with the seconds of the session that finished it."""

    def timed() -> dict[str, Any]:
      begin = time.monotonic()
      value = work()
      return {"value": value, "seconds": time.monotonic() - begin}

    return self.cells.get({"part": part, "seed": seed}, timed)["value"]

  # Parts: each prints what it found.

  def base(self) -> None:
    rows = []
    for seed in self.seeds:
      self.trained("model", seed)
      run = self.run("model", seed)
      stages = [self.greedy(run, stage) for stage in ("pretrain", "self_play")]
      rows.append([str(seed), *(_accuracy([one]) for one in stages)])
    _table("Base: greedy accuracy", ["seed", "after pre-training", "after self-play"], rows)

  def trained(self, kind: str, seed: int) -> pathlib.Path:
    """A run of this kind of model, its self-play finished."""
    folder = self.run(kind, seed)
    self.once(f"train {kind}", seed, lambda: _train(folder, self._seeded(kind, seed)))
    return folder

  def _seeded(self, kind: str, seed: int) -> Experiment:
    return dataclasses.replace(self.configs[kind], seed=seed)

  def prm(self) -> None:
    from jaxzero.recipes.prm import PrmConfig, train_prm

    rows = []
    for seed in self.seeds:
      folder = self.trained("model", seed)
      found = self.once("prm", seed, lambda folder=folder: train_prm(folder, PrmConfig()))
      grades = found["grades"]
      for row in (*grades["positions"], grades["undecided"]):
        if row:
          judges = [row[judge]["auroc"] for judge in grades["first_error"]]
          shown = ["" if one is None else f"{one:.3f}" for one in judges]
          rows.append([str(seed), row["position"], str(row["prefixes"]), *shown])
    judges = list(grades["first_error"])
    _table(
      "PRM: AUROC of solvable against not, legal prefixes",
      ["seed", "position", "prefixes", *judges],
      rows,
    )

  def scale(self) -> None:
    records = [self._scaled("model", seed) for seed in self.seeds]
    _print_curves(self.folder, [self.run("model", seed) for seed in self.seeds], records)
    _print_auto([self.run("model", seed) for seed in self.seeds], records)

  def _scaled(self, kind: str, seed: int, beside_larger: bool = False) -> dict[str, Any]:
    folder = self.trained(kind, seed)
    larger = self.trained("large", seed) if beside_larger else None

    def work() -> dict[str, Any]:
      rival = None if larger is None else Rival.of(jaxzero.load(larger), larger)
      return scale(folder, self.scale_config, rival)

    return self.once(f"scale {kind}", seed, work)

  def larger(self) -> None:
    records = [self._scaled("small", seed, beside_larger=True) for seed in self.seeds]
    small = [self.run("small", seed) for seed in self.seeds]
    greedy = np.mean(
      [rights(_cell(f, r["larger"]["test"])) for f, r in zip(small, records, strict=True)], axis=0
    )
    limit = np.mean([r["larger"]["test"]["flops_per_problem"] for r in records])
    one = records[0]["larger"]
    print(
      f"\nLarger: {one['parameters']:,} parameters and {one['train_flops']:.3g} training FLOPs "
      f"against {one['small']['parameters']:,} and {one['small']['train_flops']:.3g}; its greedy "
      f"answers: {greedy.mean():.1%} at {limit:.3g} FLOPs a problem."
    )
    rows = []
    for (name, multiple), cells in _pooled(small, records).items():
      flops = np.mean([cell["flops_per_problem"] for cell in cells])
      if flops <= limit:
        share = np.mean([rights(cell) for cell in cells], axis=0)
        gap = _difference(paired_bootstrap(share, greedy, 0))
        rows.append([name, f"{multiple}x", f"{flops:.3g}", f"{share.mean():.1%}", gap])
    _table(
      "Small model's searches at no more FLOPs than the larger one's greedy answer",
      ["strategy", "budget", "FLOPs a problem", "accuracy", "against larger, points"],
      rows,
    )

  def distill(self) -> None:
    from jaxzero.learn.lessons import DistillConfig
    from jaxzero.recipes.distill import TeacherRun, distill

    students: dict[str, list[Mapping[str, Any]]] = {lesson: [] for lesson in LESSONS}
    for seed in self.seeds:
      folder = self.trained("large", seed)
      for lesson in LESSONS:
        config = (
          DistillConfig(supervised_share=1.0, seed=seed)
          if lesson == "examples"
          else DistillConfig(targets=lesson, seed=seed)
        )
        out = self.folder / f"student-{lesson}{seed}"

        def work(folder=folder, out=out, config=config, seed=seed) -> dict[str, Any]:
          loaded = jaxzero.load(folder)
          teacher = TeacherRun(
            folder, loaded.experiment, loaded.engine, loaded.params, loaded.stage, loaded.step
          )
          return distill(teacher, self._seeded("model", seed), config, out)

        self.once(f"distill {lesson}", seed, work)
        students[lesson].append(self.greedy(out))
    _print_arms("Distillation: students of the base's shape", students, "paths")

  def curriculum(self) -> None:
    arms: dict[str, list[Mapping[str, Any]]] = {"all problems": [], "nearly solved": []}
    for seed in self.seeds:
      base, branch = self.trained("model", seed), self.run("curriculum", seed)
      config = self._seeded("model", seed)
      config = dataclasses.replace(
        config, self_play=dataclasses.replace(config.self_play, curriculum=True)
      )

      def work(base=base, branch=branch, config=config) -> None:
        _branch(base, branch, config)
        _train(branch, config)

      self.once("curriculum", seed, work)
      arms["all problems"].append(self.greedy(base))
      arms["nearly solved"].append(self.greedy(branch))
    _print_arms("Curriculum", arms, "all problems")

  def transfer(self) -> None:
    rows = []
    for seed in self.seeds:
      record = self._scaled("model", seed)
      for one in record["transfer"]:
        before, after = one["pretrain"]["accuracy"], one["self_play"]["accuracy"]
        change = _difference(one["change"])
        rows.append([str(seed), one["task"], f"{before:.1%}", f"{after:.1%}", change])
    _table("Transfer", ["seed", "task", "pre-training", "self-play", "change, points"], rows)

  def rules(self) -> None:
    bases = [str(self.trained("model", seed)) for seed in self.seeds]
    command = [
      sys.executable,
      str(pathlib.Path(__file__).with_name("rules.py")),
      *("--folder", str(self.folder / "rules"), "--base", *bases),
      *("--flops", str(self.rules_flops), "--seeds", str(len(bases))),
    ]
    subprocess.run(command, check=True)

  def flops(self) -> None:
    from flops import ratios

    rows = [
      [name, kind, f"{ratio:.3f}"]
      for kind, config in self.configs.items()
      for name, ratio in ratios(config).items()
    ]
    _table(
      "FLOPs: the ledger's over XLA's of an unrolled compile", ["what", "model", "ratio"], rows
    )

  def greedy(self, folder: pathlib.Path, stage: str | None = None) -> dict[str, Any]:
    """A run's greedy answers to the test problems: an eval object with all outcomes."""
    count = self.scale_config.problems

    def work() -> dict[str, Any]:
      run = jaxzero.load(folder, stage)
      problems = run.engine.task.problems("test", 0, count)
      result, results = evaluate(
        run.engine, run.params, problems, "greedy", run.engine.max_tokens, step=run.step
      )
      return {**result, **pack([r.right for r in results], [r.forward_tokens for r in results])}

    return self.cells.get({"greedy": folder.name, "stage": stage, "problems": count}, work)


def _train(folder: pathlib.Path, experiment: Experiment) -> None:
  """Pre-training and self-play; what is done is read."""
  with Run(folder, experiment) as run:
    for stage in (quickstart.supervised, quickstart.self_play):
      run.stage(stage.__name__, lambda stage=stage: stage(run))


def _branch(base: pathlib.Path, target: pathlib.Path, experiment: Experiment) -> None:
  """A run of another config that begins where the base's pre-training ended."""
  if (target / "config.json").exists():
    return
  half = target.with_name(f".{target.name}.half")
  shutil.rmtree(half, ignore_errors=True)
  (half / "results").mkdir(parents=True)
  for name in ("tokenizer", "checkpoints/pretrain"):
    shutil.copytree(base / name, half / name)
  for name in ("results/supervised.json", "metrics.jsonl"):
    shutil.copy(base / name, half / name)
  books = json.loads((base / "results/supervised.json").read_text())["books"]
  write_atomic(half / "ledger.json", json.dumps(books["ledger"]))
  write_atomic(half / "config.json", json.dumps(config_dict(experiment)))
  half.rename(target)


def _cell(folder: pathlib.Path, point: Mapping[str, Any]) -> dict[str, Any]:
  """A point of scale.json with the outcomes of its problems."""
  return json.loads((folder / "scale" / point["cell"]).read_text())["value"]


def _pooled(
  folders: list[pathlib.Path], records: list[dict[str, Any]]
) -> dict[tuple[str, int], list[dict[str, Any]]]:
  """Every way and budget of searches: the cells of all seeds."""
  found: dict[tuple[str, int], list[dict[str, Any]]] = {}
  for folder, record in zip(folders, records, strict=True):
    for way in record["ways"]:
      for point in way["points"]:
        key = (f"{way['strategy']}/{way['rights']}", point.get("multiple", 1))
        found.setdefault(key, []).append(_cell(folder, point))
  return found


def _print_curves(
  out: pathlib.Path, folders: list[pathlib.Path], records: list[dict[str, Any]]
) -> None:
  """Accuracy by budget, the gain of a doubling, and tree search's lead, seeds pooled."""
  pooled, multiples = _pooled(folders, records), records[0]["multiples"]
  shares = {key: np.mean([rights(c) for c in cells], axis=0) for key, cells in pooled.items()}
  names = list(dict.fromkeys(name for name, _ in shares))
  rows, gains, leads = [], [], []
  for name in names:
    curve = [shares[name, m] for m in multiples if (name, m) in shares]
    rows.append([name, *(f"{share.mean():.1%}" for share in curve)])
    if len(curve) > 1:
      found = log_budget_trend(multiples, np.stack(curve), 0)
      low, high = (100 * end for end in found["ci95"])
      fall = f"{100 * found['worst_fall']:.1f} (p {found['worst_fall_p']:.2g})"
      slope = f"{100 * found['slope_per_doubling']:+.2f} ({low:+.2f} to {high:+.2f})"
      gains.append([name, slope, fall])
    rights_of = name.split("/")[1]
    for mine in (f"mcts/{rights_of}", f"best_of_n/{rights_of}"):
      others = [name] if rights_of != "none" else []
      others += [n for n in names if n == "majority/none"] if mine == name else []
      for other in others:
        if mine != other and (mine, multiples[0]) in shares and (other, multiples[-1]) in shares:
          gaps = [
            _difference(paired_bootstrap(shares[mine, m], shares[other, m], 0)) for m in multiples
          ]
          leads.append([f"{mine} - {other}", *gaps])
  heads = [f"{m}x" for m in multiples]
  _table("Accuracy by budget, seeds pooled", ["strategy/rights", *heads], rows)
  _table("Gain of a doubling, points", ["strategy/rights", "slope", "worst fall"], gains)
  _table("Differences, points", ["", *heads], leads)
  write_atomic(out / "curves.json", json.dumps({"accuracy": rows, "gains": gains, "leads": leads}))


def _print_auto(folders: list[pathlib.Path], records: list[dict[str, Any]]) -> None:
  pooled, rows = _pooled(folders, records), []
  multiples = records[0]["multiples"]

  def joined(name: str, multiple: int) -> dict[str, Any]:
    """All seeds' problems as one row."""
    cells = pooled[name, multiple]
    return {
      "right": "".join(cell["right"] for cell in cells),
      "tokens": [tokens for cell in cells for tokens in cell["tokens"]],
    }

  for name, multiple in pooled:
    if name.startswith("auto/"):
      other = name.replace("auto", "best_of_n")
      found = token_ratio(joined(name, multiple), [joined(other, m) for m in multiples])
      low, high = found["ci95"]
      rows.append(
        [
          name,
          f"{multiple}x",
          f"{found['accuracy']:.1%}",
          f"{found['tokens']:.0f}",
          f"{found['curve_tokens']:.0f}",
          f"{found['ratio']:.2f} ({low:.2f} to {high:.2f})",
          f"{found['reached']:.0%}",
        ]
      )
  heads = ["rights", "budget", "accuracy", "tokens", "best-of-N's", "ratio", "it gets there"]
  _table("auto: forward tokens over best-of-N's for equal accuracy", heads, rows)


def _print_arms(title: str, arms: Mapping[str, list[Mapping[str, Any]]], against: str) -> None:
  base = np.mean([rights(row) for row in arms[against]], axis=0)
  rows = []
  for name, cells in arms.items():
    share = np.mean([rights(cell) for cell in cells], axis=0)
    gap = "" if name == against else _difference(paired_bootstrap(share, base, 0))
    rows.append([name, _accuracy(cells), gap])
  _table(title, ["", "greedy accuracy", f"against {against}, points"], rows)


def _accuracy(cells: Iterable[Mapping[str, Any]]) -> str:
  """Pooled accuracy with its Wilson interval."""
  cells = list(cells)
  solved, count = sum(c["solved"] for c in cells), sum(c["problems"] for c in cells)
  low, high = wilson(solved, count)
  return f"{solved / count:.1%} ({low:.1%} to {high:.1%})"


def _difference(found: Mapping[str, Any]) -> str:
  low, high = (100 * end for end in found["ci95"])
  return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def _table(title: str, heads: list[str], rows: list[list[str]]) -> None:
  print(f"\n**{title}**\n")
  for row in (heads, ["---"] * len(heads), *rows):
    print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
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
  parser.add_argument("--rules-flops", type=float, default=5e12)
  parser.add_argument("--problems", type=int, default=500)
  parser.add_argument("--validation-problems", type=int, default=128)
  arguments = parser.parse_args()
  recipe = Recipe(arguments)
  versions = f"jax {jax.__version__}, numpy {np.__version__}, Python {platform.python_version()}"
  print(
    f"`python {' '.join(sys.argv)}`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {versions}"
  )
  for part in PARTS:
    if part in arguments.parts:
      getattr(recipe, part)()
  seconds = [
    json.loads(path.read_text())["value"].get("seconds", 0.0)
    for path in recipe.cells.folder.glob("*.json")
  ]
  print(f"\nAll parts so far: {sum(seconds) / 3600:.2f} hours of wall time.")


if __name__ == "__main__":
  main()
