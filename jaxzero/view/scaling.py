"""The report's chapter on scaling: what thinking and training bought, from RUN/scale.json, and how
good the process reward model is, from RUN/prm.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxzero.view.lines import (
  RIGHTS_NAMES,
  STRATEGY_NAMES,
  bin_curves,
  curves,
  larger_curves,
  suffix,
  train_curves,
)
from jaxzero.view.page import interval, percent, points, section, table
from jaxzero.view.plots import escape, figure, si, tone


def scaling_sections(scale: Mapping[str, Any]) -> str:
  """All sections that scale.json has figures for, as HTML."""
  parts = [
    *(_by_rights(scale, rights) for rights in RIGHTS_NAMES),
    _difficulty(scale),
    _auto(scale.get("auto", {})),
    _train_time(scale["train_time"]),
    _larger(scale),
    _transfer(scale["transfer"], scale["train_time"]["test"]),
  ]
  return "".join(part for part in parts if part)


def _by_rights(scale: Mapping[str, Any], rights: str) -> str:
  series = curves(scale, rights)
  if not series:
    return ""
  chart = figure(
    series,
    f"Accuracy against forward tokens, where {RIGHTS_NAMES[rights]}",
    "forward tokens per problem (log scale)",
    "accuracy, held-out",
    log_x=True,
  )
  head = (
    "<tr><th>strategy<th>budget<th>accuracy<th>95 % interval<th>forward tokens<th>FLOP"
    "<th>tree search's lead"
  )
  numbers = table(head, list(_rows(scale, rights)))
  gains = table(
    "<tr><th>strategy<th>per doubling<th>95 % interval<th>worst fall<th>p<th>setting",
    [_gain(way) for way in scale["ways"] if way["rights"] in (rights, "none") and way["trend"]],
  )
  content = (
    f"{chart}<details><summary>Gain with every doubling</summary>{gains}</details>"
    f"<details><summary>All numbers</summary>{numbers}</details>"
  )
  note = (
    f"Here {RIGHTS_NAMES[rights]}. Budgets are {_list(scale['multiples'])} times the mean sampled "
    f"episode of {scale['unit_tokens']:.1f} tokens; {scale['problems']} held-out problems. Each "
    f"way of thinking uses the best of the settings tried on {scale['validation_problems']} "
    "validation problems."
  )
  return section(f"Thinking longer: {RIGHTS_NAMES[rights]}", content, note)


def _list(multiples: Sequence[float]) -> str:
  return ", ".join(f"{m:g}" for m in multiples)


def _rows(scale: Mapping[str, Any], rights: str) -> Iterator[str]:
  leads = {
    (one["against"], point["budget"]): point
    for one in scale["comparisons"]
    if one["strategy"] == "mcts" and one["rights"] == rights
    for point in one["points"]
  }
  for way in scale["ways"]:
    if way["rights"] not in (rights, "none"):
      continue
    for p in way["points"]:
      lead = leads.get((way["strategy"], p["budget"]))
      yield (
        f"<tr><th>{STRATEGY_NAMES[way['strategy']]}<td>{p['budget']:g}"
        f"<td><b>{percent(p['accuracy'])}</b><td>{interval(p)}"
        f"<td>{p['forward_tokens_per_problem']:,.1f}<td>{si(p['flops_per_problem'])}"
        f"<td>{_difference(lead) if lead else ''}"
      )


def _difference(one: Mapping[str, Any]) -> str:
  low, high = one["ci95"]
  return f"{points(one['difference'])} ({100 * low:+.1f} to {100 * high:+.1f})".replace(
    "-", "\N{MINUS SIGN}"
  )


def _gain(way: Mapping[str, Any]) -> str:
  trend = way["trend"]
  low, high = trend["ci95"]
  setting = ", ".join(
    "a plan" if name == "plan" else f"{name} {value}" for name, value in way["setting"].items()
  )
  return (
    f"<tr><th>{STRATEGY_NAMES[way['strategy']]}<td>{points(trend['slope_per_doubling'])}"
    f"<td>{100 * low:+.1f} to {100 * high:+.1f}<td>{100 * trend['worst_fall']:.1f}"
    f"<td>{trend['worst_fall_p']:.2g}<td>{escape(setting)}"
  )


def _difficulty(scale: Mapping[str, Any]) -> str:
  charts = ""
  for strategy in ("mcts", "best_of_n"):
    rights, series = bin_curves(scale, strategy)
    if series:
      name = STRATEGY_NAMES[strategy]
      title = f"{name[0].upper()}{name[1:]}, where {RIGHTS_NAMES[rights]}"
      charts += f'<h3 class="chart-title">{title}</h3>' + figure(
        series, title, "forward tokens per problem (log scale)", "accuracy, held-out", log_x=True
      )
  if not charts:
    return ""
  success = ", ".join(percent(part["success"]) for part in scale["difficulty"]["bins"])
  note = (
    f"Problems in fifths by how often {scale['difficulty']['samples']} samples of the model, drawn "
    f"for this alone, were right: {success} on average. The bins are for showing; no search and "
    "no setting was chosen by them."
  )
  return section("Which problems gain", charts, note)


def _auto(auto: Mapping[str, Any]) -> str:
  rows = [
    f"<tr><th>{RIGHTS_NAMES[rights]}<td>{p['budget']:g}<td><b>{percent(p['accuracy'])}</b>"
    f"<td>{p['tokens']:,.1f}<td>{p['curve_tokens']:,.1f}{_ratio(p)}<td>{percent(p['reached'])}"
    f"<td>{one['tried']} / {one['against_tried']}"
    for rights, one in auto.items()
    for p in one["points"]
  ]
  if not rows:
    return ""
  head = (
    "<tr><th>rights<th>budget<th>accuracy<th>tokens, auto<th>tokens, best of N<th>ratio"
    "<th>95 % interval<th>best of N gets there<th>tried, auto / best of N"
  )
  note = (
    "Strategy <b>auto</b> gives every problem the strategy and budget that its foreseen difficulty "
    "asks for, by a plan made on validation problems. The ratio says which share of best-of-N's "
    "forward tokens it takes for the same accuracy; where best of N never gets that far, its "
    "largest budget is put in, so the ratio is too high rather than too low. Tried: what was "
    "measured on the validation problems to choose from, chains of strategies for each bin of "
    "difficulty on one side, settings on the other; the plan is fitted more, and only the test "
    "problems, which it has not seen, are compared."
  )
  return section("Compute-optimal thinking", table(head, rows), note)


def _ratio(point: Mapping[str, Any]) -> str:
  """Two cells; empty where nothing was solved, which best-of-N gets for no token."""
  if not point["curve_tokens"]:
    return "<td><td>"
  low, high = point["ci95"]
  return f"<td><b>{point['ratio']:.2f}</b><td>{low:.2f} to {high:.2f}"


def _train_time(train: Mapping[str, Any]) -> str:
  chart = figure(
    train_curves(train),
    "Accuracy against cumulative training FLOPs",
    "training FLOP (cumulative)",
    "greedy accuracy",
  )
  spent = train["flops"]
  total = sum(spent.values()) or 1.0
  names = {
    "pretrain": ("pre-training", 0),
    "self_play": ("self-play and learning", 3),
    "prm": ("process reward model", 6),
  }
  parts = "".join(
    f'<i style="flex-grow:{flops / total:.5f};background:{tone(names[stage][1])}" '
    f'title="{names[stage][0]} {si(flops)}FLOP, {percent(flops / total)}"></i>'
    for stage, flops in spent.items()
    if flops
  )
  told = "; ".join(
    f"{names[s][0]} {si(f)}FLOP ({percent(f / total)})" for s, f in spent.items() if f
  )
  note = (
    f"Training compute: {told}. Lines are validation accuracy; the marks with an interval are "
    "the test problems at the end of each stage."
  )
  return section(
    "Training longer", f'<div class="stack"><span>FLOP</span><div>{parts}</div></div>{chart}', note
  )


def _larger(scale: Mapping[str, Any]) -> str:
  larger = scale["larger"]
  if not larger:
    return ""
  chart = figure(
    larger_curves(scale),
    "Accuracy against inference FLOPs",
    "FLOP per problem (log scale)",
    "accuracy, held-out",
    log_x=True,
  )
  models = table(
    "<tr><th>model<th>parameters<th>training FLOP<th>worked examples<th>seed<th>greedy accuracy"
    "<th>FLOP per problem",
    [
      f"<tr><th>{name}<td>{si(one['parameters'])}<td>{si(one['train_flops'])}"
      f"<td>{one['worked_examples']:,}<td>{one['run_seed']}"
      f"<td>{percent(one['test']['accuracy'])}<td>{si(one['test']['flops_per_problem'])}"
      for name, one in (("small", larger["small"]), ("larger", larger))
    ],
  )
  rows = [
    f"<tr><th>{STRATEGY_NAMES[p['strategy']]}{suffix(p['rights'])}<td>{p['budget']:g}"
    f"<td>{si(p['flops_per_problem'])}<td>{si(p['train_flops'])}<td>{percent(p['accuracy'])}"
    f"<td>{_difference(p)}"
    for p in larger["points"]
    if p["flops_per_problem"] <= larger["test"]["flops_per_problem"]
  ]
  head = (
    "<tr><th>small model, strategy<th>budget<th>FLOP<th>training FLOP<th>accuracy"
    "<th>against larger, greedy"
  )
  cheaper = (
    table(head, rows)
    if rows
    else '<p class="missing">No search of the small model costs as little as the larger one\'s '
    "greedy answer.</p>"
  )
  note = (
    f"The larger model has {larger['parameters'] / larger['small']['parameters']:.1f} times the "
    "parameters. The last table has the small model's searches that cost no more FLOPs a problem "
    "than the larger one's greedy answer, prompt, padding and idle rows included on both sides; "
    "its training FLOPs include the process reward model's where that chooses. Runs of the same "
    "seed and number of worked examples have learned from the same ones."
  )
  return section("Small and thinking, or large and quick", chart + models + cheaper, note)


def _transfer(transfer: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]]) -> str:
  """Other tasks before and after self-play, and the tasks of a mixture; ends: of both stages."""
  rows = [
    f"<tr><th>{escape(one['task'])}<td>{percent(one['pretrain']['accuracy'])}"
    f"<td>{percent(one['self_play']['accuracy'])}<td>{_difference(one['change'])}"
    for one in transfer
  ]
  before, after = (end.get("by_task", {}) for end in ends)
  rows += [
    f"<tr><th>{escape(task)}<td>{percent(before[task]['accuracy'])}"
    f"<td>{percent(after[task]['accuracy'])}"
    f"<td>{points(after[task]['accuracy'] - before[task]['accuracy'])}"
    for task in before
  ]
  if not rows:
    return ""
  head = "<tr><th>task<th>after pre-training<th>after self-play<th>change"
  note = "Greedy accuracy on each task; a mixture's are its own, others the model never learned."
  return section("Task by task", table(head, rows), note)


def prm_section(prm: Mapping[str, Any] | None) -> str:
  """The process reward model's grades, beside the value head's, from RUN/prm.json."""
  grades = (prm or {}).get("grades")
  if not grades:
    return ""
  judges = list(grades["first_error"])
  rows = [
    f"<tr><th>{escape(row['position'])}<td>{row['prefixes']:,}<td>{percent(row['illegal'])}"
    f"<td>{percent(row['solvable'])}"
    + "".join(f"<td>{_number(row[judge]['auroc'])}" for judge in judges)
    + "".join(f"<td>{_number(row[judge]['ece'])}" for judge in judges)
    for row in (*grades["positions"], grades["undecided"])
    if row
  ]
  names = [escape(judge.replace("_", " ")) for judge in judges]
  head = (
    "<tr><th>where a step ends<th>prefixes<th>illegal<th>solvable"
    + "".join(f"<th>AUROC, {name}" for name in names)
    + "".join(f"<th>calibration error, {name}" for name in names)
  )
  f1 = ", ".join(
    f"{name} {_number(grades['first_error'][judge]['f1'])}"
    for name, judge in zip(names, judges, strict=True)
  )
  note = (
    "How well scores tell prefixes that some right completion still begins with from those that "
    "none does; legal prefixes alone, as an illegal step needs no judge. The calibration error is "
    f"against the policy's own success from there. F1 of the first wrong step: {f1}."
  )
  return section("The process reward model, graded", table(head, rows), note)


def _number(value: float | None) -> str:
  return "" if value is None else f"{value:.2f}"
