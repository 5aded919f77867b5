"""The report of a run: what pre-training, self-play and thinking bought, on one offline page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etils.epath import Path

from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_jsonl, write_atomic
from jaxzero.view import chapters
from jaxzero.view.chapters import Eval
from jaxzero.view.lines import STRATEGY_NAMES
from jaxzero.view.page import duration, html_page, interval, missing, percent, section
from jaxzero.view.plots import escape, si, tone
from jaxzero.view.scaling import prm_section, scaling_sections
from jaxzero.view.tree import tree_key, tree_svg, tree_text

_NODES_DRAWN = 48


def write_report(folder: PathLike) -> Path:
  """Builds RUN/report.html from what the run has written so far; returns its path.

  Reads summary.json, metrics.jsonl, scale.json, prm.json, trees.json and ledger.json.
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
  summary_path, ledger_path = run / "summary.json", run / "ledger.json"
  # Jobs beside the story (prm, scale) are charged to the file alone.
  newest = _read_object(ledger_path)
  ledger, ledger_path = (
    (summary.get("ledger") or {}, summary_path) if newest is None else (newest, ledger_path)
  )
  body = [
    _guard(summary_path, _header, run, summary, finished, metrics),
    _guard(summary_path, _headline, summary),
    _guard(metrics_path, chapters.train_curve, metrics),
    _guard(summary_path, chapters.test_curve, summary),
    _guard(run / "scale.json", _scaling, _read_object(run / "scale.json")),
    _guard(run / "prm.json", prm_section, _read_object(run / "prm.json")),
    _guard(summary_path, chapters.control_table, summary, ledger),
    _guard(ledger_path, chapters.compute, ledger),
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
  name = STRATEGY_NAMES.get(result["strategy"], result["strategy"])
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


def _scaling(scale: Mapping | None) -> str:
  return scaling_sections(scale) if scale else ""


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
