"""The tables of benchmarks/recipe.py, printed as Markdown.

A problem's outcome is the share of seeds that solved it; intervals are 95 % of a bootstrap over
problems, differences paired by problem, so they speak of other problems, not of other seeds.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxzero.evals.curves import pool, rights, token_ratio
from jaxzero.evals.stats import log_budget_trend, mean_interval, paired_bootstrap
from jaxzero.files import write_atomic

Rows = Sequence[Mapping[str, Any]]  # eval objects with outcomes, one a seed
Pooled = Mapping[tuple[str, int], Rows]  # of every way ("strategy/rights") and multiple


def pooled(folders: Iterable[pathlib.Path], records: Iterable[Mapping[str, Any]]) -> Pooled:
  """The searches of all seeds, by way and budget; one try counts as 1x."""
  found: dict[tuple[str, int], list[dict[str, Any]]] = {}
  for folder, record in zip(folders, records, strict=True):
    for way in record["ways"]:
      for point in way["points"]:
        key = (f"{way['strategy']}/{way['rights']}", point.get("multiple", 1))
        found.setdefault(key, []).append(_cell(folder, point))
  return found


def arms(
  title: str,
  arms: Mapping[str, Rows],
  against: Sequence[str],
  entries: Sequence[str] = (),
) -> None:
  """Greedy accuracy of models that were trained differently.

  Args:
    against: arms that the others are compared with.
    entries: of the runs' `ledger`, whose FLOPs are shown, means over the seeds.
  """
  shares, rows = {name: _share(cells) for name, cells in arms.items()}, []
  for name, cells in arms.items():
    spent = [
      np.mean([cell["ledger"].get(entry, {}).get("flops", 0.0) for cell in cells])
      for entry in entries
    ]
    gaps = ["" if name == other else _gap(shares[name], shares[other]) for other in against]
    rows.append(
      [name, _accuracy(shares[name]), _by_seed(cells), *(f"{flops:.3g}" for flops in spent), *gaps]
    )
  _table(
    f"{title}: greedy accuracy",
    ["", "mean", "by seed"]
    + [f"FLOPs, {entry}" for entry in entries]
    + [f"against {other}, points" for other in against],
    rows,
  )


def prm(grades: Mapping[int, Mapping[str, Any]]) -> None:
  """grades: by seed."""
  rows: list[list[str]] = []
  judges: list[str] = []
  for seed, found in grades.items():
    judges = list(found["first_error"])
    for row in (*found["positions"], found["undecided"]):
      if row:
        scores = [row[judge]["auroc"] for judge in judges]
        shown = ["" if one is None else f"{one:.3f}" for one in scores]
        rows.append([str(seed), row["position"], str(row["prefixes"]), *shown])
  heads = ["seed", "position", "prefixes", *judges]
  _table("PRM: AUROC of solvable against not, legal prefixes", heads, rows)


def curves(folder: pathlib.Path, pooled: Pooled, multiples: Sequence[int]) -> None:
  """Accuracy by budget, the gain of a doubling, and tree search's lead; also in curves.json."""
  shares = {key: _share(cells) for key, cells in pooled.items()}
  names = list(dict.fromkeys(name for name, _ in shares))
  rows, gains = [], []
  for name in names:
    curve = [shares[name, m] for m in multiples if (name, m) in shares]
    rows.append([name, *(f"{share.mean():.1%}" for share in curve)])
    if len(curve) > 1:
      found = log_budget_trend(multiples, np.stack(curve), 0)
      low, high = (100 * end for end in found["ci95"])
      fall = f"{100 * found['worst_fall']:.1f} (p {found['worst_fall_p']:.2g})"
      slope = f"{100 * found['slope_per_doubling']:+.2f} ({low:+.2f} to {high:+.2f})"
      gains.append([name, slope, fall])
  leads = [
    [f"{mine} - {other}", *(_gap(shares[mine, m], shares[other, m]) for m in multiples)]
    for mine, other in _pairs([name for name in names if (name, multiples[-1]) in shares])
  ]
  heads = [f"{m}x" for m in multiples]
  _table("Accuracy by budget", ["strategy/rights", *heads], rows)
  _table("Gain of a doubling, points", ["strategy/rights", "slope", "worst fall"], gains)
  _table("Differences, points", ["", *heads], leads)
  write_atomic(
    folder / "curves.json", json.dumps({"accuracy": rows, "gains": gains, "leads": leads})
  )


def _pairs(names: Sequence[str]) -> list[tuple[str, str]]:
  """Tree search and best-of-N, each beside all others of its rights and majority vote."""
  return [
    (mine, other)
    for mine in names
    if mine.startswith(("mcts/", "best_of_n/"))
    for other in names
    if other != mine and (other.split("/")[1] == mine.split("/")[1] or other == "majority/none")
  ]


def auto(pooled: Pooled, record: Mapping[str, Any]) -> None:
  """What `auto` takes of best-of-N's forward tokens; record: a seed's scale.json."""
  multiples, rows = record["multiples"], []
  for (name, multiple), cells in pooled.items():
    if not name.startswith("auto/"):
      continue
    rights_of = name.split("/")[1]
    curve = [pool(pooled[f"best_of_n/{rights_of}", m]) for m in multiples]
    found, tried = token_ratio(pool(cells), curve), record["auto"][rights_of]
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
        f"{tried['tried']} / {tried['against_tried']}",
      ]
    )
  heads = ["rights", "budget", "accuracy", "tokens", "best-of-N's", "ratio", "it gets there"]
  _table(
    "auto: forward tokens over best-of-N's for equal accuracy (tried on validation problems: "
    "chains for each bin / settings)",
    [*heads, "tried"],
    rows,
  )


def larger(folders: Sequence[pathlib.Path], records: Rows) -> None:
  """The small runs' searches against the larger ones' greedy answers; records: scale.json."""
  cells = [_cell(f, r["larger"]["test"]) for f, r in zip(folders, records, strict=True)]
  greedy = _share(cells)
  limit = np.mean([cell["flops_per_problem"] for cell in cells])
  one = records[0]["larger"]
  print(
    f"\nLarger: {one['parameters']:,} parameters, {one['train_flops']:.3g} training FLOPs and "
    f"{one['worked_examples']:,} worked examples against {one['small']['parameters']:,}, "
    f"{one['small']['train_flops']:.3g} and {one['small']['worked_examples']:,}; its greedy "
    f"answers: {_accuracy(greedy)} at {limit:.3g} FLOPs a problem, by seed {_by_seed(cells)}."
  )
  rows = []
  for (name, multiple), mine in pooled(folders, records).items():
    cost, share = np.mean([cell["flops_per_problem"] for cell in mine]), _share(mine)
    if cost <= limit:
      accuracy, gap = f"{share.mean():.1%}", _gap(share, greedy)
      rows.append([name, f"{multiple}x", f"{cost:.3g}", accuracy, _by_seed(mine), gap])
  _table(
    "Small model's searches at no more FLOPs than the larger one's greedy answer",
    ["strategy", "budget", "FLOPs a problem", "accuracy", "by seed", "against larger, points"],
    rows,
  )


def transfer(found: Mapping[str, Rows]) -> None:
  """found: by run, what scale.json says of other tasks."""
  rows = [
    [
      run,
      one["task"],
      f"{one['pretrain']['accuracy']:.1%}",
      f"{one['self_play']['accuracy']:.1%}",
      _shown(one["change"]),
    ]
    for run, tasks in found.items()
    for one in tasks
  ]
  _table("Transfer", ["run", "task", "pre-training", "self-play", "change, points"], rows)


def flops(ratios: Mapping[str, Mapping[str, float]]) -> None:
  """ratios: by model and by what is counted."""
  rows = [[name, kind, f"{ratio:.3f}"] for kind, of in ratios.items() for name, ratio in of.items()]
  _table("FLOPs: the ledger's over XLA's of an unrolled compile", ["what", "model", "ratio"], rows)


def wall_time(parts: Mapping[str, float], brought: float) -> None:
  """parts: seconds of each, over all sessions; brought: of training done elsewhere."""
  seconds = {**parts, "training of runs put here": brought}
  rows = [[name, f"{one / 3600:.2f}"] for name, one in seconds.items() if one]
  rows.append(["all", f"{sum(seconds.values()) / 3600:.2f}"])
  _table("Wall time, all sessions", ["part", "hours"], rows)


def _cell(folder: pathlib.Path, point: Mapping[str, Any]) -> dict[str, Any]:
  """A point of scale.json with the outcomes of its problems."""
  return json.loads((folder / "scale" / point["cell"]).read_text())["value"]


def _share(cells: Rows) -> np.ndarray:
  """[n] float: each problem's share of seeds that solved it."""
  return np.mean([rights(cell) for cell in cells], axis=0)


def _accuracy(share: np.ndarray) -> str:
  low, high = mean_interval(share)
  return f"{share.mean():.1%} ({low:.1%} to {high:.1%})"


def _by_seed(cells: Rows) -> str:
  return ", ".join(f"{rights(cell).mean():.1%}" for cell in cells)


def _gap(a: np.ndarray, b: np.ndarray) -> str:
  return _shown(paired_bootstrap(a, b, 0))


def _shown(found: Mapping[str, Any]) -> str:
  low, high = (100 * end for end in found["ci95"])
  return f"{100 * found['difference']:+.1f} ({low:+.1f} to {high:+.1f})"


def _table(title: str, heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
  print(f"\n**{title}**\n")
  for row in (heads, ["---"] * len(heads), *rows):
    print("| " + " | ".join(row) + " |", flush=True)
