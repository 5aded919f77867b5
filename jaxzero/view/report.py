"""The report of a run: what pre-training, self-play and thinking bought, on one offline page."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils.epath import Path

from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_jsonl, write_atomic
from jaxzero.view.page import (
  duration,
  html_page,
  interval,
  missing,
  percent,
  points,
  section,
  table,
)
from jaxzero.view.plots import Series, escape, figure, si, tone
from jaxzero.view.scaling import scaling_sections
from jaxzero.view.tree import tree_key, tree_svg, tree_text

Eval = Mapping[str, Any]

_STAGES = {
  "pretrain": "Pre-training",
  "selfplay": "Self-play games",
  "learn": "Learning from them",
  "control": "Control",
  "eval": "Evaluation",
}
_STRATEGIES = {
  "greedy": "greedy",
  "sample": "sample@k",
  "majority": "majority vote",
  "best_of_n": "best of N",
  "best_first": "best-first",
  "mcts": "tree search",
}
_CURVES = ("search", "search_supervised", "sample", "sample_supervised")
_NODES_DRAWN = 48


def write_report(folder: PathLike) -> Path:
  """Builds RUN/report.html from what the run has written so far; returns its path.

  Reads summary.json, metrics.jsonl, scale.json, trees.json and, without a summary, ledger.json.
  What is missing is named on the page; without summary.json the page says "unfinished".

  Raises:
    UserError: no such run, nothing in it to report, or a damaged file.
  """
  run = as_path(folder)
  path = run / "report.html"
  write_atomic(path, report_html(run))
  return path


def report_html(run: Path) -> str:
  """The page as text; see `write_report`."""
  if not run.is_dir():
    raise UserError(f"there is no run at {run}; check the path or start one there.")
  summary = _read_object(run / "summary.json")
  metrics_path = run / "metrics.jsonl"
  if summary is None and not metrics_path.exists():
    raise UserError(f"{run} has neither summary.json nor metrics.jsonl; run the quickstart there.")
  metrics = read_jsonl(metrics_path) if metrics_path.exists() else []
  trees = _read_trees(run / "trees.json")
  finished = summary is not None
  summary = summary or {}
  ledger = summary.get("ledger") or _read_object(run / "ledger.json") or {}
  summary_path, ledger_path = run / "summary.json", run / "ledger.json"
  body = [
    _guard(summary_path, _header, run, summary, finished, metrics),
    _guard(summary_path, _headline, summary),
    _guard(metrics_path, _train_curve, metrics),
    _guard(summary_path, _test_curve, summary),
    _guard(run / "scale.json", _scaling, _read_object(run / "scale.json")),
    _guard(summary_path, _control_table, summary, ledger),
    _guard(summary_path if finished else ledger_path, _ledger, ledger),
    _guard(run / "trees.json", _trees, trees),
  ]
  task = escape(summary.get("task", "run"))
  return html_page(f"jaxzero report: {task}", "".join(body))


def _guard(path: Path, build: Callable[..., str], *inputs: Any) -> str:
  """A section; what its file has in the wrong shape becomes one sentence that names the file."""
  try:
    return build(*inputs)
  except (UserError, KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
    raise UserError(
      f"{path} is damaged ({type(error).__name__}: {error}); "
      "delete it and run the command that made it again."
    ) from error


def _header(run: Path, summary: Mapping, finished: bool, metrics: Sequence[Mapping]) -> str:
  facts = [f"<b>{escape(run.resolve().name)}</b>"]
  if "task" in summary:
    facts.append(f"task {escape(summary['task'])}")
  if "parameters" in summary:
    facts.append(f"{si(summary['parameters'])} parameters")
  if "seed" in summary:
    facts.append(f"seed {escape(summary['seed'])}")
  if "wall_s" in summary:
    facts.append(f"{duration(summary['wall_s'])}")
  if "peak_rss_bytes" in summary:
    facts.append(f"peak memory {summary['peak_rss_bytes'] / 1e9:.1f} GB")
  lines = f'<p class="facts">{" · ".join(facts)}</p>'
  if not finished:
    last = metrics[-1] if metrics else {}
    shown = [f"{escape(k)} {escape(last[k])}" for k in ("kind", "round", "step") if k in last]
    where = f" Last row: {', '.join(shown)}." if shown else ""
    lines += (
      f'<p class="notice"><b>Unfinished.</b> summary.json is not there yet; '
      f"{len(metrics)} rows of metrics so far.{where}</p>"
    )
  return f"<header><h1>What thinking bought</h1>{lines}</header>"


def _headline(summary: Mapping) -> str:
  search = max(summary.get("search") or [], key=lambda e: e["budget"], default=None)
  cards: list[tuple[str, str, Any, int]] = [
    ("Supervised", "greedy, from worked examples", summary.get("supervised"), 0),
    ("Control", "greedy, same FLOPs, more supervision", summary.get("control"), 2),
    ("Self-play", "greedy, learned from its own search", summary.get("self_play"), 1),
    ("With search", _cost(search) if search else "", search, 3),
  ]
  shown = "".join(_card(*card) for card in cards if card[2])
  if not shown:
    return section("In short", missing("final evaluations", "summary.json"))
  note = (
    "Share of held-out problems solved; the bar below each number runs from 0 to 100 % and its "
    "thick part is the 95 % Wilson interval. Where two intervals overlap widely, read no winner."
  )
  return section("In short", f'<div class="cards">{shown}</div>', note)


def _cost(result: Eval) -> str:
  name = _STRATEGIES.get(result["strategy"], result["strategy"])
  return f"{name}, {result['forward_tokens_per_problem']:,.0f} forward tokens per problem"


def _card(name: str, what: str, result: Eval, index: int) -> str:
  low, high = result["ci95"]
  return (
    f'<div class="card" style="--tone:{tone(index)}"><h3>{name}</h3>'
    f'<p class="big">{percent(result["accuracy"])}</p>'
    f'<div class="track"><i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    f'<b style="left:{100 * result["accuracy"]:.1f}%"></b></div>'
    f'<p class="small">{interval(result)}<br>{result["solved"]:,} of {result["problems"]:,} '
    f"solved<br>{escape(what)}</p></div>"
  )


def _train_curve(metrics: Sequence[Mapping]) -> str:
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


def _test_curve(summary: Mapping) -> str:
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
    name = _STRATEGIES.get(strategy, strategy)
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


def _scaling(scale: Mapping | None) -> str:
  return scaling_sections(scale) if scale else ""


def _eval_row(name: str, e: Eval) -> str:
  verified = {True: "yes", False: "no"}.get(e.get("verified_inside", ""), "")
  return (
    f"<tr><th>{escape(name)}<td>{e['budget']:g}<td><b>{percent(e['accuracy'])}</b>"
    f"<td>{interval(e)}<td>{e['solved']:,} / {e['problems']:,}"
    f"<td>{e['forward_tokens_per_problem']:,.1f}<td>{si(e['flops_per_problem'])}<td>{verified}"
  )


def _control_table(summary: Mapping, ledger: Mapping) -> str:
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


def _ledger(ledger: Mapping) -> str:
  stages = [s for s in (*_STAGES, *(ledger.keys() - _STAGES.keys())) if s in ledger]
  if not stages:
    return section("Where the compute went", missing("the ledger", "summary.json"))
  bars, shares = "", {}
  for column in ("flops", "seconds"):
    total = math.fsum(ledger[s][column] for s in stages) or 1.0
    shares[column] = {s: ledger[s][column] / total for s in stages}
    parts = "".join(
      f'<i style="flex-grow:{share:.5f};background:{tone(_stage_tone(s))}" '
      f'title="{escape(_STAGES.get(s, s))} {percent(share)}"></i>'
      for s, share in shares[column].items()
      if share > 0
    )
    bars += f"<span>{ {'flops': 'FLOP', 'seconds': 'time'}[column] }</span><div>{parts}</div>"
  rows = [
    f'<tr><th><i class="dot" style="background:{tone(_stage_tone(s))}"></i>'
    f"{escape(_STAGES.get(s, s))}"
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


def _stage_tone(stage: str) -> int:
  known = {"pretrain": 0, "selfplay": 1, "learn": 3, "control": 2, "eval": 4}
  return known.get(stage, 5)


def _trees(trees: Sequence[Mapping]) -> str:
  title = "Searched problems"
  if not trees:
    return section(title, missing("searched problems", "trees.json"))
  content = tree_key() + "".join(map(_searched, trees))
  note = (
    "Read each tree left to right: every path is a chain of tokens the model considered. The "
    "number below a token counts visits (so does the edge's width), the colour is the estimated "
    "chance of ending right, the ringed blue path is what was played. Hover a token for its "
    "prior and value."
  )
  return section(title, content, note)


def _searched(tree: Mapping) -> str:
  mark, verdict = {True: ("right", "right"), False: ("wrong", "wrong")}.get(
    tree.get("correct", ""), ("", "not checked")
  )
  text = "\n".join(map(escape, tree_text(tree, _NODES_DRAWN).split("\n")))
  return (
    f'<article class="panel"><h3>{escape(tree["problem"])}</h3><dl>'
    f"<dt>answer<dd><code>{escape(tree.get('answer') or 'none')}</code> "
    f'<span class="verdict {mark}">{verdict}</span>'
    f"<dt>thinking<dd><code>{escape(tree.get('thinking') or 'none')}</code></dl>"
    f'<div class="scroll" tabindex="0">{tree_svg(tree, _NODES_DRAWN)}</div>'
    "<details><summary>The same tree as text</summary>"
    f'<pre class="scroll" tabindex="0">{text}</pre></details></article>'
  )


def _read_object(path: Path) -> dict[str, Any] | None:
  value = _read_json(path)
  if value is not None and not isinstance(value, dict):
    raise UserError(f"{path} is damaged: it holds a {type(value).__name__}, not an object.")
  return value


def _read_trees(path: Path) -> list[dict[str, Any]]:
  value = _read_json(path) or []
  if not isinstance(value, list) or not all(isinstance(tree, dict) for tree in value):
    raise UserError(f"{path} is damaged: it is not a list of trees.")
  return value


def _read_json(path: Path) -> Any:
  """The file's JSON; None where there is no file."""
  try:
    return json.loads(path.read_bytes())
  except FileNotFoundError:
    return None
  except (ValueError, IsADirectoryError) as error:
    raise UserError(
      f"{path} is damaged ({error}); the command that made it can make it anew."
    ) from error
