"""The report's chapters on training, thinking, the control, and where the compute went."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxzero.view.lines import STRATEGY_NAMES
from jaxzero.view.page import duration, interval, missing, percent, points, section, table
from jaxzero.view.plots import Series, escape, figure, si, tone

Eval = Mapping[str, Any]

_STAGES = {
  "pretrain": ("Pre-training", 0),
  "selfplay": ("Self-play games", 1),
  "learn": ("Learning from them", 3),
  "control": ("Control", 2),
  "teacher": ("The teacher's searches", 1),
  "distill": ("Distillation", 3),
  "prm": ("Process reward model", 6),
  "eval": ("Evaluation", 4),
}
"""Entries of the ledger: name and tone."""
_CURVES = ("search", "search_supervised", "sample", "sample_supervised")


def train_curve(metrics: Sequence[Mapping]) -> str:
  """Pre-training, then self-play and the control branching off its best model.

  FLOPs of "round" rows include pre-training; those of "control" rows count from its own start.
  """
  points = {
    kind: [
      (row["flops"], row["validation_accuracy"])
      for row in metrics
      if row["kind"] == kind and row.get("validation_accuracy") is not None
    ]
    for kind in ("pretrain", "round", "control")
  }
  if not any(points.values()):
    return section("Training", missing("validation accuracy", "metrics.jsonl"))
  origin = max((row["flops"] for row in metrics if row["kind"] == "pretrain"), default=0.0)
  points["control"] = [(origin + flops, accuracy) for flops, accuracy in points["control"]]
  if points["pretrain"]:
    fork = (origin, max(accuracy for _, accuracy in points["pretrain"]))
    for kind in ("round", "control"):
      points[kind] = [fork, *points[kind]] if points[kind] else []
  highest = max(flops for line in points.values() for flops, _ in line)
  scale, unit = next(
    ((s, u) for s, u in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G")) if highest >= s),
    (1.0, ""),
  )
  names = {"pretrain": (0, "pre-training"), "round": (1, "self-play"), "control": (2, "control")}
  series = [
    Series(
      name,
      [flops / scale for flops, _ in points[kind]],
      [accuracy for _, accuracy in points[kind]],
      index,
      notes=[f"{name}: {a:.1%} after {f / scale:.4g} {unit}FLOP" for f, a in points[kind]],
      dashed=kind == "control",
    )
    for kind, (index, name) in names.items()
    if points[kind]
  ]
  chart = figure(
    series,
    "Validation accuracy against training compute",
    f"training compute, {unit}FLOP (cumulative)",
    "greedy validation accuracy",
  )
  note = (
    "Up is better, left is cheaper. Self-play and the control both start at the best pre-trained "
    "model; self-play's compute includes its games. What matters is the gap between these two "
    "lines at the same place on the x axis."
  )
  rounds = [row for row in metrics if row["kind"] == "round" and "solved_share" in row]
  if rounds:
    note += (
      f" In its own games the model solved {percent(rounds[0]['solved_share'])} of the problems "
      f"in the first round and {percent(rounds[-1]['solved_share'])} in the last of {len(rounds)}."
    )
  return section("Training", chart, note)


def test_curve(summary: Mapping) -> str:
  groups: dict[tuple[str, str], list[Eval]] = {}
  for source in _CURVES:
    for result in summary.get(source) or []:
      groups.setdefault((source, result["strategy"]), []).append(result)
  for source in ("self_play", "supervised"):
    if summary.get(source):
      groups[source, "greedy"] = [summary[source]]
  if not any(source in _CURVES for source, _ in groups):
    return section("Thinking", missing("evaluated searches", "summary.json"))
  tones = {"search": 3, "search_supervised": 3, "sample": 4, "sample_supervised": 4}
  tones |= {"self_play": 1, "supervised": 0}
  spare = itertools.cycle((6, 5))  # for further strategies of one source
  seen: set[str] = set()
  series, rows = [], []
  for (source, strategy), results in groups.items():
    name = STRATEGY_NAMES.get(strategy, strategy)
    before = source.endswith("supervised")
    name += ", supervised" if before else ", self-play" if source == "self_play" else ""
    results = sorted(results, key=lambda e: e["forward_tokens_per_problem"])
    index = next(spare) if source in seen else tones[source]
    seen.add(source)
    series.append(
      Series(
        name,
        [e["forward_tokens_per_problem"] for e in results],
        [e["accuracy"] for e in results],
        index,
        [e["ci95"][0] for e in results],
        [e["ci95"][1] for e in results],
        [
          f"{name}, budget {e['budget']:g}: {percent(e['accuracy'])}, {interval(e)}"
          for e in results
        ],
        dashed=before,
      )
    )
    rows += [_eval_row(name, e) for e in results]
  chart = figure(
    series,
    "Accuracy against forward tokens per problem",
    "forward tokens per problem (log scale)",
    "accuracy, held-out",
    log_x=True,
  )
  head = (
    "<tr><th>strategy<th>budget<th>accuracy<th>95 % interval<th>solved<th>forward tokens"
    "<th>FLOP<th>verifies inside"
  )
  numbers = f"<details><summary>All numbers</summary>{table(head, rows)}</details>"
  note = (
    "One line per way of thinking: how much accuracy each forward token (one position put through "
    "the model) buys at test time. The band is the 95 % Wilson interval; a line above and to the "
    "left of another is the better deal."
  )
  if any(source.endswith("supervised") for source, _ in groups):
    note += " Dashed: the supervised model, before self-play."
  return section("Thinking", chart + numbers, note)


def _eval_row(name: str, e: Eval) -> str:
  verified = {True: "yes", False: "no"}.get(e.get("verified_inside", ""), "")
  return (
    f"<tr><th>{escape(name)}<td>{e['budget']:g}<td><b>{percent(e['accuracy'])}</b>"
    f"<td>{interval(e)}<td>{e['solved']:,} / {e['problems']:,}"
    f"<td>{e['forward_tokens_per_problem']:,.1f}<td>{si(e['flops_per_problem'])}<td>{verified}"
  )


def control_table(summary: Mapping, ledger: Mapping) -> str:
  if not summary.get("control") or not summary.get("self_play"):
    return section(
      "Is it self-play, or just more training?", missing("the control", "summary.json")
    )

  def flops(*stages: str) -> float:
    return sum(ledger.get(stage, {}).get("flops", 0.0) for stage in stages)

  models = [
    ("supervised", "Supervised", flops("pretrain")),
    ("control", "+ more of the same", flops("pretrain", "control")),
    ("self_play", "+ self-play", flops("pretrain", "selfplay", "learn")),
  ]
  base = summary["control"]["accuracy"]
  rows = []
  for key, name, spent in models:
    result = summary.get(key)
    if result:
      gap = "" if key == "control" else points(result["accuracy"] - base)
      rows.append(
        f"<tr><th>{name}<td><b>{percent(result['accuracy'])}</b><td>{interval(result)}"
        f"<td>{result['solved']:,} / {result['problems']:,}<td>{si(spent)}<td>{gap}"
      )
  head = (
    "<tr><th>model, greedy<th>accuracy<th>95 % interval<th>solved<th>training FLOP"
    "<th>against control"
  )
  note = (
    "The control trains on with the supervised examples until it has spent the FLOPs that "
    "self-play spent on games and learning. Only what self-play has over the control is its merit."
  )
  return section("Is it self-play, or just more training?", table(head, rows), note)


def compute(ledger: Mapping) -> str:
  stages = [s for s in (*_STAGES, *sorted(ledger.keys() - _STAGES.keys())) if s in ledger]
  if not stages:
    return section("Where the compute went", missing("the ledger", "summary.json"))
  looks = {s: _STAGES.get(s, (escape(s), 5)) for s in stages}
  bars, shares = "", {}
  for column in ("flops", "seconds"):
    total = math.fsum(ledger[s][column] for s in stages) or 1.0
    shares[column] = {s: ledger[s][column] / total for s in stages}
    parts = "".join(
      f'<i style="flex-grow:{share:.5f};background:{tone(looks[s][1])}" '
      f'title="{looks[s][0]} {percent(share)}"></i>'
      for s, share in shares[column].items()
      if share > 0
    )
    bars += f"<span>{ {'flops': 'FLOP', 'seconds': 'time'}[column] }</span><div>{parts}</div>"
  rows = [
    f'<tr><th><i class="dot" style="background:{tone(looks[s][1])}"></i>{looks[s][0]}'
    f"<td>{si(ledger[s]['flops'])}<td>{percent(shares['flops'][s])}"
    f"<td>{duration(ledger[s]['seconds'])}<td>{percent(shares['seconds'][s])}"
    f"<td>{si(ledger[s]['forward_tokens'])}"
    for s in stages
  ]
  head = "<tr><th>stage<th>FLOP<th>share<th>time<th>share<th>forward tokens"
  note = (
    "Both bars add up to 100 %: above FLOPs (padded and masked positions included), below wall "
    "seconds. A stage that is wider below than above uses the machine worse than the others."
  )
  content = f'<div class="stack">{bars}</div>{table(head, rows)}'
  return section("Where the compute went", content, note)
