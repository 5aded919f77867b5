"""A search tree to look at: as SVG that reads like text, left to right, and as plain text.

The most visited line of play is the straight top row; a sibling starts a row of its own below.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from jaxzero.errors import UserError
from jaxzero.view.plots import escape, printable

_CIVIDIS = (
  *("#00224e", "#123570", "#3b496c", "#575d6d", "#707173"),
  *("#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838"),
)
_ROW, _PILL, _CHAR, _LABEL = 44, 24, 7.4, 16
_VERDICT = {True: "verified right", False: "verified wrong", None: "end, not verified"}
_RIGHT, _WRONG = "#00835f", "#c94f00"

Tree = Mapping[str, Any]
Node = Mapping[str, Any]


def tree_svg(tree: Tree, max_nodes: int = 120) -> str:
  """Inline SVG of a tree: edge width = visits, node colour = value, badge = verdict.

  Args:
    tree: {"problem", "prefix", "num_simulations", "nodes": [{"id", "parent" (-1: root), "token",
      "prior", "visits", "value", "terminal", "right" (None: not verified), "order"}], "chosen"};
      parents come before their children.
    max_nodes: the most visited nodes drawn; what hangs below them is counted as "+n".

  Raises:
    UserError: where the dict is not such a tree.
  """
  nodes, children = _index(tree)
  chosen = _path(nodes, tree.get("chosen"))
  kept = _most_visited(nodes, chosen, max_nodes)
  root = next(iter(nodes))
  top = max(1, max(nodes[child]["visits"] for child in children[root])) if children[root] else 1
  hidden = _hidden_below(nodes, kept)
  place: dict[int, tuple[float, int, float]] = {}  # id -> left x, row, pill width
  edges: list[tuple[float, str]] = []  # (how far in front, path)
  pills: list[str] = []
  row, widest = -1, 0.0
  for key, starts_row, is_rest in _walk(root, children, kept, hidden):
    row += starts_row
    node, parent = nodes[key], key if is_rest else nodes[key]["parent"]
    x, width = 8.0, _width(_label(node, key == root)) + 18
    if parent in place:
      begin, parent_row, parent_width = place[parent]
      begin += parent_width
      forks = sum(child in kept for child in children[parent]) + (parent in hidden) > 1
      x = begin + (34 if forks else 18)
      share = 0.0 if is_rest else node["visits"] / top
      played = key in chosen and not is_rest
      edges.append((2 if played else -share, _edge(begin, parent_row, x, row, share, played)))
    if is_rest:
      pills.append(_rest(x + 4, row, hidden[key]))
      width = 30
    else:
      place[key] = (x, row, width)
      pills.append(_pill(tree, nodes, key, place[key], key in chosen))
    widest = max(widest, x + width + 26)
  height = (row + 1) * _ROW + 6
  label = escape(f"Search tree of {tree.get('problem', '')}: {len(nodes)} nodes")
  return (
    f'<svg class="tree" width="{widest:.0f}" height="{height}" viewBox="0 0 {widest:.0f} {height}" '
    f'role="img" aria-label="{label}" font-family="ui-monospace, Menlo, Consolas, monospace" '
    f'font-size="12.5">{"".join(path for _, path in sorted(edges))}{"".join(pills)}</svg>'
  )


def tree_text(tree: Tree, max_nodes: int = 120) -> str:
  """The tree as indented plain text: token, visits, value, prior, verdict; `*` marks the chosen.

  Raises:
    UserError: where the dict is not a tree as `tree_svg` takes it.
  """
  nodes, children = _index(tree)
  chosen = _path(nodes, tree.get("chosen"))
  kept = _most_visited(nodes, chosen, max_nodes)
  hidden, root = _hidden_below(nodes, kept), next(iter(nodes))
  lines = [printable(f"{tree.get('problem', '')}  ({len(nodes) - 1} simulated nodes)")]
  depth = {root: 0}
  for key, _, is_rest in _walk(root, children, kept, hidden):
    node = nodes[key]
    if is_rest:
      lines.append(f"{'  ' * (depth[key] + 1)}- +{hidden[key]} more")
      continue
    if key != root:
      depth[key] = depth[node["parent"]] + 1
    verdict = "  " + _VERDICT[node["right"]] if node["terminal"] else ""
    lines.append(
      f"{'  ' * depth[key]}{'*' if key in chosen else '-'} {printable(_label(node, key == root))}"
      f"  visits {node['visits']}  value {node['value']:.2f}  prior {node['prior']:.2f}{verdict}"
    )
  return "\n".join(lines) + "\n"


def value_colour(value: float) -> tuple[str, str]:
  """(fill, ink) of a value in [0, 1] on cividis: fair to the eye, also to the colour-blind."""
  if not math.isfinite(value):
    return "#8a8a8a", "#000000"
  position = min(max(value, 0.0), 1.0) * (len(_CIVIDIS) - 1)
  first = min(int(position), len(_CIVIDIS) - 2)
  mix = position - first
  low, high = (bytes.fromhex(_CIVIDIS[i][1:]) for i in (first, first + 1))
  rgb = [round(a + (b - a) * mix) for a, b in zip(low, high, strict=True)]
  linear = [(c / 255) ** 2.2 for c in rgb]
  luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  return "#{:02x}{:02x}{:02x}".format(*rgb), "#000000" if luminance > 0.179 else "#ffffff"


def tree_key() -> str:
  """The legend that belongs under a tree, as HTML."""
  stops = "".join(f'<stop offset="{i / 9:.3f}" stop-color="{c}"/>' for i, c in enumerate(_CIVIDIS))
  scale = (
    f'<svg width="92" height="12" aria-hidden="true"><defs><linearGradient id="value-scale">{stops}'
    '</linearGradient></defs><rect width="92" height="12" rx="6" fill="url(#value-scale)"/></svg>'
  )
  badges = "".join(
    f'<span><svg width="18" height="18" aria-hidden="true">{_badge(9, 9, right)}</svg>{text}</span>'
    for right, text in (
      (True, "verified right"),
      (False, "verified wrong"),
      (None, "end, unverified"),
    )
  )
  return f'<div class="legend"><span>P(right) 0 {scale} 1</span>{badges}</div>'


def _index(tree: Tree) -> tuple[dict[int, Node], dict[int, list[int]]]:
  """Nodes by id and children by visits, most visited first; the first node is the root."""
  nodes: dict[int, Node] = {}
  children: dict[int, list[int]] = {}
  try:
    for node in tree["nodes"]:
      key, parent = int(node["id"]), int(node["parent"])
      if key in nodes or (parent in nodes if not nodes else parent not in nodes):
        raise ValueError(f"node {key} is a duplicate or comes before its parent {parent}")
      if not node["visits"] >= 0 or not isinstance(node["token"], str):
        raise ValueError(f"node {key} has visits={node['visits']!r}, token={node['token']!r}")
      float(node["prior"]), float(node["value"])
      if node["right"] not in (True, False, None):
        raise ValueError(f"node {key} has right={node['right']!r}")
      nodes[key], children[key] = node, []
      if len(nodes) > 1:
        children[parent].append(key)
    if not nodes:
      raise ValueError("it has no nodes")
    _ = [node["terminal"] for node in nodes.values()]
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(f"this is no search tree ({error!s}); see jaxzero.view.tree.") from error
  for siblings in children.values():
    siblings.sort(key=lambda key: -nodes[key]["visits"])
  return nodes, children


def _path(nodes: dict[int, Node], key: int | None) -> set[int]:
  path: set[int] = set()
  while key in nodes and key not in path:
    path.add(key)
    key = nodes[key]["parent"]
  return path


def _most_visited(nodes: dict[int, Node], chosen: set[int], max_nodes: int) -> set[int]:
  """The root, the chosen path, a few right answers, then by visits; closed under parents."""
  root = next(iter(nodes))
  right = [key for key, node in nodes.items() if node["terminal"] and node["right"]]
  by_visits = sorted(nodes, key=lambda key: -nodes[key]["visits"])
  kept = {root} | chosen
  for key in [*right[:8], *by_visits]:
    path = _path(nodes, key)
    if len(kept | path) <= max_nodes:
      kept |= path
  return kept


def _hidden_below(nodes: dict[int, Node], kept: set[int]) -> dict[int, int]:
  """Kept node -> how many nodes below it are not shown."""
  hidden: dict[int, int] = {}
  for key in nodes.keys() - kept:
    while key not in kept:
      key = nodes[key]["parent"]
    hidden[key] = hidden.get(key, 0) + 1
  return hidden


def _walk(
  root: int, children: dict[int, list[int]], kept: set[int], hidden: dict[int, int]
) -> Iterator[tuple[int, bool, bool]]:
  """Depth first (id, starts a row, stands for what is hidden below id); the first one shown below
  a node stays on its row."""
  stack = [(root, True, False)]
  while stack:
    key, starts_row, is_rest = stack.pop()
    yield key, starts_row, is_rest
    if is_rest:
      continue
    below = [(child, False) for child in children[key] if child in kept]
    below += [(key, True)] if key in hidden else []
    stack += reversed([(child, i > 0, rest) for i, (child, rest) in enumerate(below)])


def _label(node: Node, is_root: bool) -> str:
  if is_root and not node["token"]:
    return "root"
  token = {"": "∅", " ": "␣"}.get(node["token"], node["token"].replace("\n", "⏎"))
  return token if len(token) <= _LABEL else token[: _LABEL - 1] + "…"


def _width(text: str) -> float:
  return _CHAR * sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _middle(row: int) -> float:
  return row * _ROW + 6 + _PILL / 2


def _edge(x0: float, row0: int, x1: float, row1: int, share: float, chosen: bool) -> str:
  y0, y1, bend = _middle(row0), _middle(row1), min(14.0, x1 - x0 - 4)
  if row0 == row1:
    path = f"M{x0:.1f} {y0:.1f}H{x1:.1f}"
  else:  # a bus: right, round the corner, down, round the corner, right
    turn = x0 + 12
    path = f"M{x0:.1f} {y0:.1f}C{turn} {y0} {turn} {y0} {turn} {y0 + bend:.1f}"
    path += f"V{y1 - bend:.1f}C{turn} {y1} {turn} {y1} {x1:.1f} {y1:.1f}"
  colour = "var(--accent,#0b62b8)" if chosen else "var(--edge,#a9b0ba)"
  width = 1 + 5 * math.sqrt(min(max(share, 0.0), 1.0))
  return f'<path d="{path}" fill="none" style="stroke:{colour}" stroke-width="{width:.1f}"/>'


def _pill(
  tree: Tree, nodes: dict[int, Node], key: int, place: tuple[float, int, float], chosen: bool
) -> str:
  node, (x, row, width), root = nodes[key], place, next(iter(nodes))
  y = _middle(row)
  fill, ink = value_colour(float(node["value"]))
  ring = "var(--accent,#0b62b8)" if chosen else "currentColor"
  opacity, stroke = (1, 2.5) if chosen else (0.35, 1)
  tokens = []
  at = key
  while at != root:
    tokens.append(nodes[at]["token"])
    at = nodes[at]["parent"]
  hover = [
    " ".join([str(tree.get("prefix", "")), *reversed(tokens)]).strip() or "root",
    f"prior {node['prior']:.3f}, visits {node['visits']}, value {node['value']:.3f}",
    f"made by simulation {node.get('order', key)}",
    *([_VERDICT[node["right"]]] if node["terminal"] else []),
  ]
  out = (
    f"<g><title>{'&#10;'.join(map(escape, hover))}</title>"
    f'<rect x="{x:.1f}" y="{y - _PILL / 2:.1f}" width="{width:.1f}" height="{_PILL}" rx="7" '
    f'fill="{fill}" style="stroke:{ring}" stroke-opacity="{opacity}" stroke-width="{stroke}"/>'
    f'<text x="{x + width / 2:.1f}" y="{y + 4.5:.1f}" text-anchor="middle" fill="{ink}" '
    f'xml:space="preserve">{escape(_label(node, key == root))}</text>'
    f'<text x="{x + width / 2:.1f}" y="{y + _PILL / 2 + 11:.1f}" text-anchor="middle" '
    f'font-size="9.5" fill="currentColor" fill-opacity=".7">{node["visits"]}</text>'
  )
  if node["terminal"]:
    out += _badge(x + width + 13, y, node["right"])
  return out + "</g>"


def _badge(x: float, y: float, right: bool | None) -> str:
  """Right: a disc with a tick. Wrong: a diamond with a cross. Not verified: a ring."""
  if right is None:
    return f'<circle cx="{x:.1f}" cy="{y}" r="5.5" fill="none" stroke="currentColor"/>'
  if right:
    shape = f'<circle cx="{x:.1f}" cy="{y}" r="8.5" fill="{_RIGHT}"/>'
    mark = f"M{x - 4:.1f} {y + 0.3:.1f}l2.8 3l5.2 -6"
  else:
    shape = f'<path d="M{x:.1f} {y - 9.5}l9.5 9.5l-9.5 9.5l-9.5 -9.5Z" fill="{_WRONG}"/>'
    mark = f"M{x - 3:.1f} {y - 3}l6 6m0 -6l-6 6"
  return (
    f'{shape}<path d="{mark}" fill="none" stroke="#fff" stroke-width="2" stroke-linecap="round"/>'
  )


def _rest(x: float, row: int, count: int) -> str:
  return (
    f'<text x="{x:.1f}" y="{_middle(row) + 4:.1f}" fill="currentColor" fill-opacity=".75" '
    f'font-size="11.5">+{count}<title>{count} nodes with few visits are not drawn</title></text>'
  )
