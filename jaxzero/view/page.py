"""The frame of every page: one style for light and dark, sections, tables, numbers as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxzero.view.plots import TONES, escape

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
.chart-title{margin:22px 0 10px}
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
.scroll{overflow-x:auto}.scroll+.scroll{margin-top:26px}pre{font-size:12.5px;line-height:1.5;margin:0}
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


def section(title: str, content: str, note: str = "") -> str:
  how = f'<p class="how">{note}</p>' if note else ""
  return f"<section><h2>{title}</h2>{content}{how}</section>"


def missing(what: str, name: str) -> str:
  return f'<p class="missing">Not here yet: {what} (looked in {escape(name)}).</p>'


def table(head: str, rows: Sequence[str]) -> str:
  return (
    f'<div class="scroll" tabindex="0"><table><thead>{head}</thead>'
    f"<tbody>{''.join(rows)}</tbody></table></div>"
  )


def percent(share: float) -> str:
  return f"{100 * share:.1f} %"


def points(difference: float) -> str:
  return f"{100 * difference:+.1f} points".replace("-", "\N{MINUS SIGN}")


def interval(result: Mapping[str, Any]) -> str:
  low, high = result["ci95"]
  return f"{100 * low:.1f} to {100 * high:.1f} %"


def duration(seconds: float) -> str:
  if seconds < 60:
    return f"{seconds:.1f} s"
  minutes, rest = divmod(round(seconds), 60)
  return (
    f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
  )
