"""The report's chapter on scaling: what thinking and training bought, from RUN/scale.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxzero.view.page import interval, percent, points, section, table
from jaxzero.view.plots import Series, escape, figure, si, tone

STRATEGY_NAMES = {
  "greedy": "greedy",
  "sample": "one sample",
  "majority": "majority vote",
  "best_of_n": "best of N",
  "shared_samples": "shared samples",
  "without_replacement": "without replacement",
  "best_first": "best-first",
  "beam": "beam",
  "dvts": "DVTS",
  "lookahead": "lookahead",
  "mcts": "tree search",
  "auto": "auto",
}
RIGHTS_NAMES = {
  "verifier": "the verifier is heard inside",
  "value": "the value head chooses",
  "prm": "the process reward model chooses",
}
_TONES = {
  "greedy": 0,
  "mcts": 3,
  "best_of_n": 1,
  "auto": 6,
  "beam": 2,
  "lookahead": 4,
  "dvts": 5,
  "majority": 7,
  "shared_samples": 8,
  "without_replacement": 9,
  "best_first": 11,
  "sample": 12,
}
_BINS = ("easiest fifth", "second", "third", "fourth", "hardest fifth")


def scaling_sections(scale: Mapping[str, Any]) -> str:
  """All sections that scale.json has figures for, as HTML."""
  parts = [
    *(_by_rights(scale, rights) for rights in RIGHTS_NAMES),
    _difficulty(scale),
    _auto(scale.get("auto", {})),
    _train_time(scale["train_time"]),
    _larger(scale),
    _transfer(scale["transfer"], scale["train_time"]["test"]),
    _prm(scale["prm"]),
  ]
  return "".join(part for part in parts if part)


def curves(scale: Mapping[str, Any], rights: str) -> list[Series]:
  """A line for every strategy under these rights; those without rights are shown beside them."""
  shown = [way for way in scale["ways"] if way["rights"] in (rights, "none")]
  if all(way["rights"] == "none" for way in shown):
    return []
  return [
    Series(
      STRATEGY_NAMES[way["strategy"]],
      [p["forward_tokens_per_problem"] for p in way["points"]],
      [p["accuracy"] for p in way["points"]],
      _TONES[way["strategy"]],
      notes=[
        f"{STRATEGY_NAMES[way['strategy']]}, budget {p['budget']}: {percent(p['accuracy'])}, "
        f"{interval(p)}"
        for p in way["points"]
      ],
      dashed=way["strategy"] in ("majority", "shared_samples", "without_replacement", "best_first"),
    )
    for way in shown
  ]


def bin_curves(scale: Mapping[str, Any], strategy: str) -> tuple[str, list[Series]]:
  """The rights under which a strategy's bins are shown (without a verifier if so measured), and a
  line for every bin of difficulty."""
  order = {rights: number for number, rights in enumerate(("prm", "value", "verifier"))}
  found = [w for w in scale["ways"] if w["strategy"] == strategy and w["rights"] in order]
  if not found:
    return "", []
  way = min(found, key=lambda w: order[w["rights"]])
  lines: dict[int, list[Mapping[str, Any]]] = {}
  for point in way["points"]:
    for part in point["by_bin"]:
      lines.setdefault(part["bin"], []).append(part)
  series = [
    Series(
      _BINS[number],
      [part["forward_tokens_per_problem"] for part in parts],
      [part["accuracy"] for part in parts],
      (3, 1, 5, 2, 6)[number],
      [part["ci95"][0] for part in parts],
      [part["ci95"][1] for part in parts],
    )
    for number, parts in sorted(lines.items())
  ]
  return way["rights"], series


def train_curves(train: Mapping[str, Any]) -> list[Series]:
  """Validation accuracy by training FLOPs: pre-training grey, self-play green."""
  names = {"pretrain": ("pre-training", 0), "self_play": ("self-play", 3)}
  lines = {
    stage: [(p["flops"], p["accuracy"]) for p in train["validation"] if p["stage"] == stage]
    for stage in names
  }
  if lines["pretrain"] and lines["self_play"]:  # self-play goes on from the best model
    best = max(accuracy for _, accuracy in lines["pretrain"])
    lines["self_play"].insert(0, (train["flops"]["pretrain"], best))
  ends = {end["stage"]: end for end in train["test"]}
  series = []
  for stage, (name, index) in names.items():
    line, end = lines[stage], ends[stage]
    series.append(Series(name, [x for x, _ in line], [y for _, y in line], index))
    interval_ = ([end["ci95"][0]], [end["ci95"][1]])
    series.append(
      Series(f"{name}, test", [end["flops"]], [end["accuracy"]], index, *interval_, dashed=True)
    )
  return [one for one in series if one.x]


def larger_curves(scale: Mapping[str, Any]) -> list[Series]:
  """Accuracy by inference FLOPs: the small model's ways of thinking, the larger one's greedy."""
  larger = scale["larger"]
  if not larger:
    return []
  wanted = ("mcts", "best_of_n", "auto")
  lines = [
    Series(
      f"small, {STRATEGY_NAMES[way['strategy']]}" + _suffix(way["rights"]),
      [p["flops_per_problem"] for p in way["points"]],
      [p["accuracy"] for p in way["points"]],
      _TONES[way["strategy"]],
      dashed=way["rights"] != "verifier",
    )
    for way in scale["ways"]
    if way["strategy"] in wanted and way["rights"] in ("verifier", "value")
  ]
  greedy = larger["test"]
  return [
    *lines,
    Series(
      f"larger ({si(larger['parameters'])}), greedy",
      [greedy["flops_per_problem"]],
      [greedy["accuracy"]],
      0,
      [greedy["ci95"][0]],
      [greedy["ci95"][1]],
    ),
  ]


def _suffix(rights: str) -> str:
  return {"value": ", by value", "prm": ", by PRM"}.get(rights, "")


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
    f"<td>{p['tokens']:,.1f}<td>{p['curve_tokens']:,.1f}<td><b>{p['ratio']:.2f}</b>"
    f"<td>{p['ci95'][0]:.2f} to {p['ci95'][1]:.2f}<td>{percent(p['reached'])}"
    for rights, one in auto.items()
    for p in one["points"]
  ]
  if not rows:
    return ""
  head = (
    "<tr><th>rights<th>budget<th>accuracy<th>tokens, auto<th>tokens, best of N<th>ratio"
    "<th>95 % interval<th>best of N gets there"
  )
  note = (
    "Strategy <b>auto</b> gives every problem the strategy and budget that its foreseen difficulty "
    "asks for, by a plan made on validation problems. The ratio says which share of best-of-N's "
    "forward tokens it takes for the same accuracy; where best of N never gets that far, its "
    "largest budget is put in, so the ratio is too high rather than too low."
  )
  return section("Compute-optimal thinking", table(head, rows), note)


def _train_time(train: Mapping[str, Any]) -> str:
  chart = figure(
    train_curves(train),
    "Accuracy against cumulative training FLOPs",
    "training FLOP (cumulative)",
    "greedy accuracy",
  )
  spent = train["flops"]
  total = sum(spent.values()) or 1.0
  names = {"pretrain": ("pre-training", 0), "self_play": ("self-play and learning", 3)}
  parts = "".join(
    f'<i style="flex-grow:{flops / total:.5f};background:{tone(names[stage][1])}" '
    f'title="{names[stage][0]} {si(flops)}FLOP, {percent(flops / total)}"></i>'
    for stage, flops in spent.items()
    if flops
  )
  told = "; ".join(f"{names[s][0]} {si(f)}FLOP ({percent(f / total)})" for s, f in spent.items())
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
    "<tr><th>model<th>parameters<th>training FLOP<th>greedy accuracy<th>FLOP per problem",
    [
      f"<tr><th>{name}<td>{si(one['parameters'])}<td>{si(one['train_flops'])}"
      f"<td>{percent(one['test']['accuracy'])}<td>{si(one['test']['flops_per_problem'])}"
      for name, one in (("small", larger["small"]), ("larger", larger))
    ],
  )
  rows = [
    f"<tr><th>{STRATEGY_NAMES[p['strategy']]}{_suffix(p['rights'])}<td>{p['budget']:g}"
    f"<td>{si(p['flops_per_problem'])}<td>{percent(p['accuracy'])}<td>{_difference(p)}"
    for p in larger["points"]
    if p["flops_per_problem"] <= larger["test"]["flops_per_problem"]
  ]
  head = "<tr><th>small model, strategy<th>budget<th>FLOP<th>accuracy<th>against larger, greedy"
  cheaper = (
    table(head, rows)
    if rows
    else '<p class="missing">No search of the small model costs as little as the larger one\'s '
    "greedy answer.</p>"
  )
  note = (
    f"The larger model has {larger['parameters'] / larger['small']['parameters']:.1f} times the "
    "parameters. The last table has the small model's searches that cost no more FLOPs a problem "
    "than the larger one's greedy answer, prompt, padding and idle rows included on both sides."
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


def _prm(prm: Mapping[str, Any] | None) -> str:
  """The process reward model's grades, beside the value head's."""
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
