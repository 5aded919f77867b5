"""The report of a run: what pre-training, self-play and thinking bought, on one offline page."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxzero.errors import UserError
from jaxzero.files import read_jsonl, write_atomic
from jaxzero.view.plots import TONES, Series, escape, figure, si, tone
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
_NODES_DRAWN = 48

_DARK_TONES = ("#a3adba", "#6fb3ff", "#ff9d5c", "#46cfa3", "#e29fd8", "#e3c24c", "#ff8fa6")

_STYLE = """
:root{color-scheme:light dark;--bg:#f7f7f5;--panel:#fff;--ink:#1b1e23;--muted:#565d68;
--line:#e3e3df;--edge:#b3b8c0;--accent:#0b62b8;--right:#00765a;--wrong:#b54600;LIGHT}
@media(prefers-color-scheme:dark){:root{--bg:#121417;--panel:#1b1e23;--ink:#e8eaed;
--muted:#a6adb8;--line:#31363e;--edge:#59606b;--accent:#6fb3ff;--right:#46cfa3;--wrong:#ff9d5c;DARK}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.55 system-ui,sans-serif;
-webkit-text-size-adjust:100%}
main{max-width:920px;margin:0 auto;padding:56px 28px 96px}
h1{font-size:34px;line-height:1.15;letter-spacing:-.02em;margin:0 0 10px}
h2{font-size:21px;letter-spacing:-.01em;margin:0 0 18px}
h3{font-size:15px;margin:0}
section{margin-top:56px}
.facts{color:var(--muted);margin:0}.facts b{color:var(--ink)}
.notice{border-left:4px solid var(--wrong);background:var(--panel);padding:12px 16px;
margin:20px 0 0}
.how{color:var(--muted);font-size:14.5px;max-width:68ch;margin:14px 0 0}
.missing{color:var(--muted);border:1px dashed var(--line);border-radius:10px;padding:18px;margin:0}
.cards{display:grid;grid-template-columns:repeat(4,1fr);gap:14px}
.card,.panel{background:var(--panel);border:1px solid var(--line);border-radius:12px;padding:18px}
.card h3{color:var(--tone)}
.big{font-size:32px;line-height:1.2;font-weight:650;letter-spacing:-.02em;margin:2px 0 12px;
font-variant-numeric:tabular-nums;white-space:nowrap}
.small{color:var(--muted);font-size:13.5px;line-height:1.5;margin:12px 0 0}
.track{position:relative;height:6px;border-radius:3px;background:var(--line)}
.track i{position:absolute;height:6px;border-radius:3px;background:var(--tone);opacity:.5}
.track b{position:absolute;top:-3px;width:3px;height:12px;margin-left:-1.5px;border-radius:2px;
background:var(--tone)}
.chart{display:block;width:100%;height:auto;background:var(--panel);border:1px solid var(--line);
border-radius:12px;padding:14px}
.narrow{display:none}
.legend{display:flex;flex-wrap:wrap;gap:4px 18px;font-size:13.5px;margin:0 0 12px}
.legend span{display:inline-flex;align-items:center;gap:7px}
table{border-collapse:collapse;width:100%;font-size:14.5px;font-variant-numeric:tabular-nums}
th,td{padding:8px 14px 8px 0;text-align:right;border-bottom:1px solid var(--line);
white-space:nowrap;font-weight:400}
th:first-child{text-align:left}thead th{color:var(--muted);font-size:13px}td b{font-weight:650}
tbody tr:last-child>*{border-bottom:0}th:last-child,td:last-child{padding-right:0}
.stack{display:grid;grid-template-columns:auto 1fr;gap:8px 12px;align-items:center;
font-size:13.5px;color:var(--muted);margin-bottom:14px}
.stack div{display:flex;gap:2px;height:22px;border-radius:6px;overflow:hidden}
.stack i{min-width:1px}
.dot{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:9px}
details{margin-top:14px}summary{cursor:pointer;color:var(--accent);font-size:14.5px}
details>.scroll{margin-top:8px}
.panel{margin-top:16px}.panel h3{font:600 17px ui-monospace,Menlo,Consolas,monospace}
.scroll{overflow-x:auto}pre{font-size:12.5px;line-height:1.5;margin:0}
dl{display:grid;grid-template-columns:auto 1fr;gap:4px 16px;margin:10px 0 16px;font-size:14.5px}
dt{color:var(--muted)}dd{margin:0;min-width:0;overflow-wrap:anywhere}
code{font:14px ui-monospace,Menlo,Consolas,monospace}
.verdict{font-size:13px;font-weight:650;margin-left:8px;color:var(--muted)}
.verdict.right{color:var(--right)}.verdict.right::before{content:"✓ "}
.verdict.wrong{color:var(--wrong)}.verdict.wrong::before{content:"✕ "}
:focus-visible{outline:2px solid var(--accent);outline-offset:3px}
@media(max-width:820px){.cards{grid-template-columns:repeat(2,1fr)}}
@media(max-width:620px){main{padding:32px 16px 64px}h1{font-size:28px}section{margin-top:44px}
.wide{display:none}.narrow{display:block}.card{padding:14px}.big{font-size:26px}
.chart{padding:8px}}
"""


def write_report(run: Path) -> Path:
  """Builds RUN/report.html from what the run has written so far; returns its path.

  Reads summary.json, metrics.jsonl, trees.json and, without a summary, ledger.json. What is
  missing is named on the page; without summary.json the page says "unfinished".

  Raises:
    UserError: no such run, nothing in it to report, or a damaged file.
  """
  run = Path(run)
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
    facts.append(f"{_duration(summary['wall_s'])}")
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
    return _section("In short", _missing("final evaluations", "summary.json"))
  note = (
    "Share of held-out problems solved; the bar below each number runs from 0 to 100 % and its "
    "thick part is the 95 % Wilson interval. Where two intervals overlap widely, read no winner."
  )
  return _section("In short", f'<div class="cards">{shown}</div>', note)


def _cost(result: Eval) -> str:
  name = _STRATEGIES.get(result["strategy"], result["strategy"])
  return f"{name}, {result['forward_tokens_per_problem']:,.0f} forward tokens per problem"


def _card(name: str, what: str, result: Eval, index: int) -> str:
  low, high = result["ci95"]
  return (
    f'<div class="card" style="--tone:{tone(index)}"><h3>{name}</h3>'
    f'<p class="big">{_percent(result["accuracy"])}</p>'
    f'<div class="track"><i style="left:{100 * low:.1f}%;width:{100 * (high - low):.1f}%"></i>'
    f'<b style="left:{100 * result["accuracy"]:.1f}%"></b></div>'
    f'<p class="small">{_interval(result)}<br>{result["solved"]:,} of {result["problems"]:,} '
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
    return _section("Training", _missing("validation accuracy", "metrics.jsonl"))
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
      f" In its own games the model solved {_percent(rounds[0]['solved_share'])} of the problems "
      f"in the first round and {_percent(rounds[-1]['solved_share'])} in the last of {len(rounds)}."
    )
  return _section("Training", chart, note)


def _test_curve(summary: Mapping) -> str:
  groups: dict[tuple[str, str], list[Eval]] = {}
  for source in ("search", "search_supervised", "sample"):
    for result in summary.get(source) or []:
      groups.setdefault((source, result["strategy"]), []).append(result)
  for source in ("self_play", "supervised"):
    if summary.get(source):
      groups[source, "greedy"] = [summary[source]]
  if not any(source in ("search", "search_supervised", "sample") for source, _ in groups):
    return _section("Thinking", _missing("evaluated searches", "summary.json"))
  tones = {"search": 3, "search_supervised": 3, "sample": 4, "self_play": 1, "supervised": 0}
  spare = itertools.cycle((6, 5))  # for further strategies of one source
  seen: set[str] = set()
  series, rows = [], []
  for (source, strategy), results in groups.items():
    name = _STRATEGIES.get(strategy, strategy)
    name += {"search_supervised": ", supervised", "self_play": ", self-play"}.get(source, "")
    name += ", supervised" if source == "supervised" else ""
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
          f"{name}, budget {e['budget']:g}: {_percent(e['accuracy'])}, {_interval(e)}"
          for e in results
        ],
        dashed=source in ("search_supervised", "supervised"),
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
  table = f"<details><summary>All numbers</summary>{_table(head, rows)}</details>"
  note = (
    "One line per way of thinking: how much accuracy each forward token (one position put through "
    "the model) buys at test time. The band is the 95 % Wilson interval; a line above and to the "
    "left of another is the better deal."
  )
  if any(source == "search_supervised" for source, _ in groups):
    note += " Dashed: the supervised model, before self-play."
  return _section("Thinking", chart + table, note)


def _eval_row(name: str, e: Eval) -> str:
  verified = {True: "yes", False: "no"}.get(e.get("verified_inside", ""), "")
  return (
    f"<tr><th>{escape(name)}<td>{e['budget']:g}<td><b>{_percent(e['accuracy'])}</b>"
    f"<td>{_interval(e)}<td>{e['solved']:,} / {e['problems']:,}"
    f"<td>{e['forward_tokens_per_problem']:,.1f}<td>{si(e['flops_per_problem'])}<td>{verified}"
  )


def _control_table(summary: Mapping, ledger: Mapping) -> str:
  if not summary.get("control") or not summary.get("self_play"):
    return _section(
      "Is it self-play, or just more training?", _missing("the control", "summary.json")
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
      gap = "" if key == "control" else _points(result["accuracy"] - base)
      rows.append(
        f"<tr><th>{name}<td><b>{_percent(result['accuracy'])}</b><td>{_interval(result)}"
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
  return _section("Is it self-play, or just more training?", _table(head, rows), note)


def _ledger(ledger: Mapping) -> str:
  stages = [s for s in (*_STAGES, *(ledger.keys() - _STAGES.keys())) if s in ledger]
  if not stages:
    return _section("Where the compute went", _missing("the ledger", "summary.json"))
  bars, shares = "", {}
  for column in ("flops", "seconds"):
    total = math.fsum(ledger[s][column] for s in stages) or 1.0
    shares[column] = {s: ledger[s][column] / total for s in stages}
    parts = "".join(
      f'<i style="flex-grow:{share:.5f};background:{tone(_stage_tone(s))}" '
      f'title="{escape(_STAGES.get(s, s))} {_percent(share)}"></i>'
      for s, share in shares[column].items()
      if share > 0
    )
    bars += f"<span>{ {'flops': 'FLOP', 'seconds': 'time'}[column] }</span><div>{parts}</div>"
  rows = [
    f'<tr><th><i class="dot" style="background:{tone(_stage_tone(s))}"></i>'
    f"{escape(_STAGES.get(s, s))}"
    f"<td>{si(ledger[s]['flops'])}<td>{_percent(shares['flops'][s])}"
    f"<td>{_duration(ledger[s]['seconds'])}<td>{_percent(shares['seconds'][s])}"
    f"<td>{si(ledger[s]['forward_tokens'])}"
    for s in stages
  ]
  head = "<tr><th>stage<th>FLOP<th>share<th>time<th>share<th>forward tokens"
  note = (
    "Both bars add up to 100 %: above FLOPs (padded and masked positions included), below wall "
    "seconds. A stage that is wider below than above uses the machine worse than the others."
  )
  content = f'<div class="stack">{bars}</div>{_table(head, rows)}'
  return _section("Where the compute went", content, note)


def _stage_tone(stage: str) -> int:
  known = {"pretrain": 0, "selfplay": 1, "learn": 3, "control": 2, "eval": 4}
  return known.get(stage, 5)


def _trees(trees: Sequence[Mapping]) -> str:
  title = "Searched problems"
  if not trees:
    return _section(title, _missing("searched problems", "trees.json"))
  content = tree_key() + "".join(map(_searched, trees))
  note = (
    "Read each tree left to right: every path is a chain of tokens the model considered. The "
    "number below a token counts visits (so does the edge's width), the colour is the estimated "
    "chance of ending right, the ringed blue path is what was played. Hover a token for its "
    "prior and value."
  )
  return _section(title, content, note)


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


def _section(title: str, content: str, note: str = "") -> str:
  how = f'<p class="how">{note}</p>' if note else ""
  return f"<section><h2>{title}</h2>{content}{how}</section>"


def _missing(what: str, name: str) -> str:
  return f'<p class="missing">Not here yet: {what} (looked in {escape(name)}).</p>'


def _table(head: str, rows: Sequence[str]) -> str:
  return (
    f'<div class="scroll" tabindex="0"><table><thead>{head}</thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def _percent(share: float) -> str:
  return f"{100 * share:.1f} %"


def _points(difference: float) -> str:
  return f"{100 * difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def _interval(result: Eval) -> str:
  low, high = result["ci95"]
  return f"{100 * low:.1f} to {100 * high:.1f} %"


def _duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return (
    f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
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
  except ValueError as error:
    raise UserError(
      f"{path} is damaged ({error}); the command that made it can make it anew."
    ) from error


def html_page(title: str, body: str) -> str:
  """A self-contained HTML page; `title` and `body` are already escaped HTML."""
  style = _STYLE.replace("LIGHT", _tones(TONES)).replace("DARK", _tones(_DARK_TONES))
  return (
    '<!doctype html><html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    f"<title>{title}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
  )


def _tones(colours: tuple[str, ...]) -> str:
  return ";".join(f"--s{i}:{colour}" for i, colour in enumerate(colours))
