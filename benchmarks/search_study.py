"""Which search solves most per forward token? Countdown, three seeds, supervised and final models.

Every strategy gets one run a problem at the largest budget; what it had solved at a smaller one is
read off it, because a search's first nodes do not depend on how many may follow. Two settings:
with the verifier inside (a search stops at its first verified answer, and gives up a line where the
verifier, reading along, knows that it is lost), and without (a search spends its budget and gives
the end that the value head likes best).

Each strategy's knobs are tuned on validation problems of seed 0, so many settings for each
(`GRID`), for each model and mode. Then 500 test problems, all seeds.

  python benchmarks/search_study.py --runs runs/study/seed0/run runs/study/seed1/run ...

needs finished runs (`benchmarks/self_improvement.py` leaves them) and writes tables as Markdown,
search_study.json and search_study.png beside the first run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
from typing import Any

import jax
import numpy as np

import jaxzero
from jaxzero.evals.stats import paired_bootstrap
from jaxzero.files import write_atomic
from jaxzero.progress import bar
from jaxzero.search.config import TreeConfig
from jaxzero.search.pool import think
from jaxzero.tasks.transcript import grade

MULTIPLES = (1, 2, 4, 8, 16, 32)
STRATEGIES = ("best_of_n", "shared_samples", "without_replacement", "best_first", "mcts")
TUNING_PROBLEMS, TEST_PROBLEMS = 128, 500
TEMPERATURES = (0.6, 0.8, 1.0, 1.25, 1.5, 2.0)
GRID: dict[str, list[dict[str, float]]] = {
  "best_of_n": [{"temperature": t} for t in TEMPERATURES],
  "shared_samples": [{"temperature": t} for t in TEMPERATURES],
  "without_replacement": [{"temperature": t} for t in TEMPERATURES],
  "best_first": [
    {"temperature": t, "depth_bonus": b} for t, b in itertools.product((1.0, 1.5), (0.1, 0.3, 0.6))
  ],
}
# MCTS: (depth_bonus, regret, failure, value), with verdicts to hear and without.
HEARING = ((0.1, 0.5, 0.5, 0.0), (0.2, 0.5, 0.5, 0.0), (0.1, 0.5, 0.25, 0.0), (0.1, 1.0, 0.5, 0.0),
           (0.1, 0.5, 1.0, 0.0), (0.1, 0.5, 0.5, 0.25))  # fmt: skip
DEAF = ((0.1, 0.5, 0.0, 0.0), (0.1, 0.5, 0.0, 0.5), (0.1, 0.5, 0.0, 1.0), (0.1, 0.5, 0.0, 2.0),
        (0.1, 0.5, 0.5, 0.5), (0.1, 0.5, 0.5, 1.0))  # fmt: skip


def grid(strategy: str, inside: bool) -> list[dict[str, float]]:
  """Six settings a strategy."""
  if strategy != "mcts":
    return GRID[strategy]
  names = ("depth_bonus", "regret_weight", "failure_weight", "value_weight")
  return [
    {"temperature": 1.0, **dict(zip(names, values, strict=True))}
    for values in (HEARING if inside else DEAF)
  ]


def curve(
  run: Any,
  params: Any,
  problems: list,
  strategy: str,
  knobs: dict,
  budgets: list[int],
  inside: bool,
) -> np.ndarray:
  """Who is solved at each budget: bool [budgets, problems]."""
  if strategy == "best_of_n":
    tries = samples(run, params, problems, knobs["temperature"], budgets[-1], inside)
  else:
    tries = ends(run, params, problems, strategy, knobs, budgets[-1], inside)
  solved = np.zeros((len(budgets), len(problems)), bool)
  for i, (cost, value, right) in enumerate(tries):
    for b, budget in enumerate(budgets):
      fits = cost <= budget
      if inside:
        solved[b, i] = bool(right[fits].any())
      elif fits.any():
        solved[b, i] = bool(right[fits][np.argmax(value[fits])])
  return solved


def samples(run, params, problems, temperature: float, budget: int, inside: bool) -> list[tuple]:
  """Independent samples of each problem: cumulated cost, value and verdict of those that ended."""
  engine, count = run.engine, len(problems)
  spent, tries = np.zeros(count, int), [([], [], []) for _ in problems]
  open_, attempt = np.arange(count), 0
  while len(open_):
    key = jax.random.fold_in(jax.random.key(17), attempt)
    for begin in range(0, len(open_), 128):
      index = open_[begin : begin + 128]
      rows = engine.rows(min(128, count))
      batch = engine.encode([problems[i] for i in index], rows)
      numbers = np.resize(index, rows)
      keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
      out = engine.decode(params, batch, keys, temperature, inside)
      for row, i in enumerate(index):
        spent[i] += out["length"][row]
        if out["finished"][row]:
          value = out["values"][row, out["length"][row] - 1]
          for kept, new in zip(tries[i], (spent[i], value, out["right"][row]), strict=True):
            kept.append(new)
    solved = np.array([any(tries[i][2]) for i in open_]) & inside
    open_ = open_[~solved & (spent[open_] < budget)]
    attempt += 1
  return [tuple(np.asarray(x) for x in one) for one in tries]


def ends(
  run, params, problems, strategy: str, knobs: dict, budget: int, inside: bool
) -> list[tuple]:
  """The ends of each problem's tree: nodes made until then, value and verdict."""
  knobs = dict(knobs)
  temperature = knobs.pop("temperature")
  order = "guided" if strategy == "mcts" else strategy
  config = TreeConfig(order=order, num_simulations=budget, **knobs)
  engine = run.engine
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(17), np.arange(len(problems))
  )
  noise = 1.0 if strategy == "without_replacement" else 0.0
  thinking = think(
    engine,
    params,
    problems,
    keys,
    budget,
    config,
    inside,
    noise,
    temperature,
    keep_trees=0 if inside else len(problems),
  )
  if inside:
    out = thinking.insight
    return [
      (np.array([out.forward_tokens[i]]), np.zeros(1), np.array([bool(out.answer_right[i])]))
      for i in range(len(problems))
    ]
  return [
    tree_ends(run, problem, tree) for problem, tree in zip(problems, thinking.trees, strict=True)
  ]


def tree_ends(run, problem, tree) -> tuple:
  finished = tree.token == run.engine.tokenizer.end_id
  terminal = np.flatnonzero(tree.terminal & finished & (tree.parent >= 0))
  best, rights = -1.0, []
  for node in terminal:  # only an end that would be given needs a verdict
    right = False
    if tree.raw_value[node] > best:
      best = tree.raw_value[node]
      path = tree.path[node][: tree.depth[node]]
      right = grade(run.engine.task, run.engine.tokenizer, problem, tree.token[path]).right
    rights.append(right)
  return terminal, tree.raw_value[terminal], np.asarray(rights, bool)


def area(solved: np.ndarray) -> float:
  """Mean share solved over the budgets, which are equal steps of log2."""
  return float(solved.mean())


def tune(run, params, budgets, inside: bool) -> dict[str, Any]:
  """The best of each strategy's settings on validation problems, and what all of them reached."""
  problems = run.engine.task.problems("validation", 0, TUNING_PROBLEMS)
  chosen: dict[str, dict[str, float]] = {}
  tried = []
  for strategy in STRATEGIES:
    scores = []
    for knobs in grid(strategy, inside):
      solved = curve(run, params, problems, strategy, knobs, budgets, inside)
      scores.append((area(solved), knobs))
      tried.append({"strategy": strategy, **knobs, "by_budget": solved.mean(1).tolist()})
    chosen[strategy] = max(scores, key=lambda one: one[0])[1]
  return {"chosen": chosen, "tried": tried}


def cell(path: pathlib.Path, make) -> Any:
  """A result that is kept: read if it is there, else made and written."""
  if not path.exists():
    write_atomic(path, json.dumps(make()))
  return json.loads(path.read_text())


def study(folders: list[pathlib.Path], out: pathlib.Path, modes: list[str]) -> dict[str, Any]:
  """Every model and mode; cells that are done are read, so several processes may share the work.

  Without a verdict only the final model is asked: the supervised one's value head has learned
  nothing that it could pick by.
  """
  out.mkdir(parents=True, exist_ok=True)
  results: dict[str, Any] = {}
  models = {"inside": ("supervised", "final"), "outside": ("final",)}
  work = [(model, mode == "inside") for mode in modes for model in models[mode]]
  with bar("study", len(work) * (1 + len(folders)), "cells") as progress:
    for model, inside in work:
      name = f"{model}-{'inside' if inside else 'outside'}"
      stage = "pretrain" if model == "supervised" else "self_play"
      first = jaxzero.load(folders[0], stage)
      unit = cell(out / "unit.json", lambda: mean_episode(folders[0]))
      budgets = [round(unit * multiple) for multiple in MULTIPLES]
      tuned = cell(
        out / f"tuned-{name}.json",
        lambda run=first, b=budgets, i=inside: tune(run, run.params, b, i),
      )
      progress.advance(1)
      solved: dict[str, list] = {strategy: [] for strategy in STRATEGIES}
      for number, folder in enumerate(folders):

        def one(folder=folder, stage=stage, tuned=tuned, budgets=budgets, inside=inside):
          run = jaxzero.load(folder, stage)
          problems = run.engine.task.problems("test", 0, TEST_PROBLEMS)
          return {
            strategy: curve(
              run, run.params, problems, strategy, tuned["chosen"][strategy], budgets, inside
            ).tolist()
            for strategy in STRATEGIES
          }

        for strategy, rows in cell(out / f"{name}-{number}.json", one).items():
          solved[strategy].append(rows)
        progress.advance(1)
      results[name] = {"budgets": budgets, "tuned": tuned["chosen"], "solved": solved}
  return results


def mean_episode(folder: pathlib.Path) -> float:
  """Tokens of the supervised model's mean sampled episode, the unit of budgets."""
  run = jaxzero.load(folder, "pretrain")
  problems = run.engine.task.problems("validation", 0, TUNING_PROBLEMS)
  keys = jax.random.split(jax.random.key(0), len(problems))
  out = run.engine.decode(run.params, run.engine.encode(problems, len(problems)), keys, 1.0)
  return float(out["length"].mean())


def tokens_to_reach(budgets: list[int], share: np.ndarray, wanted: float) -> float:
  """Budget at which a share is reached, by interpolation in log budget; inf: never."""
  if share[0] >= wanted:
    return float(budgets[0])
  for (b0, s0), (b1, s1) in itertools.pairwise(zip(budgets, share, strict=True)):
    if s1 >= wanted:
      return float(np.exp(np.interp(wanted, [s0, s1], np.log([b0, b1]))))
  return float("inf")


def tables(results: dict[str, Any]) -> str:
  lines = []
  for name, result in results.items():
    mean = {s: np.mean(rows, axis=0) for s, rows in result["solved"].items()}  # [budgets, problems]
    heads = " | ".join(f"{m}x ({b})" for m, b in zip(MULTIPLES, result["budgets"], strict=True))
    lines += [f"\n**{name}**; settings {result['tuned']}\n", f"| | {heads} |"]
    lines.append("|---|" + "---|" * len(MULTIPLES))
    for strategy in STRATEGIES:
      shares = " | ".join(f"{x:.1%}" for x in mean[strategy].mean(axis=1))
      lines.append(f"| {strategy} | {shares} |")
    ladder = ("best_of_n", "shared_samples", "best_first", "mcts")
    for low, high in itertools.pairwise(ladder):
      tests = [paired_bootstrap(mean[high][b], mean[low][b], seed=0) for b in range(len(MULTIPLES))]
      cells = " | ".join(
        f"{t['difference'] * 100:+.1f} ({t['ci95'][0] * 100:+.1f} to {t['ci95'][1] * 100:+.1f})"
        for t in tests
      )
      lines.append(f"| {high} - {low}, points | {cells} |")
    wanted = float(mean["best_of_n"].mean(axis=1)[-1])
    needed = {
      s: tokens_to_reach(result["budgets"], mean[s].mean(axis=1), wanted) for s in STRATEGIES
    }
    factors = ", ".join(f"{s} 1/{result['budgets'][-1] / t:.1f}" for s, t in needed.items())
    lines.append(f"\nForward tokens for best-of-N's share at 32x ({wanted:.1%}): {factors}.")
  return "\n".join(lines)


def plot(results: dict[str, Any], path: pathlib.Path) -> None:
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  figure, axes = plt.subplots(1, len(results), figsize=(4.2 * len(results), 3.8), sharey=True)
  for axis, (name, result) in zip(np.atleast_1d(axes), results.items(), strict=True):
    for strategy in STRATEGIES:
      shares = np.mean(result["solved"][strategy], axis=(0, 2))
      axis.plot(result["budgets"], shares * 100, marker="o", ms=3, label=strategy)
    axis.set(xscale="log", xlabel="forward tokens a problem", title=name)
    axis.set_xticks(result["budgets"], [str(budget) for budget in result["budgets"]])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
  np.atleast_1d(axes)[0].set_ylabel("solved, %")
  np.atleast_1d(axes)[-1].legend(frameon=False, fontsize=8)
  figure.tight_layout()
  figure.savefig(path, dpi=130)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--runs", type=pathlib.Path, nargs="+", required=True)
  parser.add_argument("--out", type=pathlib.Path, default=None)
  parser.add_argument("--modes", nargs="+", default=["inside", "outside"])
  arguments = parser.parse_args()
  out = arguments.out or arguments.runs[0].parent / "search_study"
  results = study(arguments.runs, out, arguments.modes)
  print(tables(results))
  write_atomic(out / "search_study.json", json.dumps(results))
  plot(results, out / "search_study.png")


if __name__ == "__main__":
  main()
