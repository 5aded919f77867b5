import re
import xml.etree.ElementTree as ET

import pytest

from jaxzero.errors import UserError
from jaxzero.view.tree import tree_key, tree_svg, tree_text, value_colour

EVIL = "<script>alert(1)</script>"


def node(id, parent, token="6", visits=1, terminal=False, right=None):
  return {
    "id": id,
    "parent": parent,
    "token": token,
    "prior": 0.25,
    "visits": visits,
    "value": 0.43,
    "terminal": terminal,
    "right": right,
    "order": id,
  }


def tree(*nodes, chosen=None):
  root = node(0, -1, "", visits=sum(n["visits"] for n in nodes) + 1)
  return {
    "problem": "2 4 5 6 = 32",
    "prefix": "6*5",
    "num_simulations": len(nodes),
    "nodes": [root, *nodes],
    "chosen": chosen,
  }


def bush(count):
  """A root with two arms: a chain of `count` nodes and `count` leaves."""
  chain = [node(i + 1, i, f"c{i}", visits=count - i) for i in range(count)]
  return tree(*chain, *[node(count + 1 + i, 0, f"l{i}") for i in range(count)])


def test_every_node_is_drawn_once_without_overlap():
  svg = ET.fromstring(tree_svg(bush(12)))
  boxes = [tuple(float(r.get(k)) for k in ("x", "y", "width", "height")) for r in svg.iter("rect")]
  assert len(boxes) == 25
  for i, (x, y, w, h) in enumerate(boxes):
    for x2, y2, w2, h2 in boxes[:i]:
      assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
  width, height = float(svg.get("width")), float(svg.get("height"))
  assert all(x + w < width and y + h < height for x, y, w, h in boxes)


@pytest.mark.parametrize("max_nodes", [1, 5, 20])
def test_what_is_not_drawn_is_counted(max_nodes):
  svg = tree_svg(bush(40), max_nodes)
  drawn, hidden = svg.count("<rect"), sum(map(int, re.findall(r">\+(\d+)<", svg)))
  assert drawn == max_nodes and drawn + hidden == 81
  text = tree_text(bush(40), max_nodes)
  assert text.count("visits") + sum(map(int, re.findall(r"\+(\d+) more", text))) == 81


def test_the_chosen_path_and_right_answers_are_always_drawn():
  leaves = [node(i, 0, f"l{i}", visits=5) for i in range(1, 50)]
  rare = [node(50, 0, "rare"), node(51, 50, "win", terminal=True, right=True)]
  svg = tree_svg(tree(*leaves, *rare, chosen=49), max_nodes=6)
  assert ">rare<" in svg and ">win<" in svg and ">l49<" in svg
  assert svg.count("<rect") == 6


def test_more_visits_make_a_wider_edge():
  svg = tree_svg(tree(node(1, 0, "a", visits=20), node(2, 0, "b", visits=2)))
  paths = re.findall(r'<path d="[^"]*" fill="none" style="[^"]*" stroke-width="([\d.]+)"', svg)
  assert sorted(map(float, paths))[1] > 2 * sorted(map(float, paths))[0]


def test_verdicts_differ_in_shape_not_only_in_colour():
  def marks(right):
    svg = tree_svg(tree(node(1, 0, "end", terminal=True, right=right)))
    return svg.count("<circle"), svg.count('stroke="#fff"'), "verified wrong" in svg

  assert marks(True) == (1, 1, False)
  assert marks(False) == (0, 1, True)
  assert marks(None) == (1, 0, False)


def test_model_text_is_escaped_everywhere():
  evil = tree(node(1, 0, EVIL), node(2, 1, '"><img src=x onerror=1>\x1b[2J\u202e'))
  evil["problem"] = evil["prefix"] = EVIL
  svg = tree_svg(evil)
  assert "<script" not in svg and "<img" not in svg
  assert "&lt;script&gt;alert(1)&lt;/script&gt;" in svg
  ET.fromstring(svg)
  text = tree_text(evil)
  assert "\x1b" not in text and "\u202e" not in text


def test_hover_tells_path_prior_visits_and_value():
  svg = tree_svg(tree(node(1, 0, "+"), node(2, 1, "2", visits=7)))
  assert "<title>6*5 + 2&#10;prior 0.250, visits 7, value 0.430" in svg


def test_text_shows_the_same_numbers():
  lines = tree_text(tree(node(1, 0, "+", visits=3), node(2, 1, "2"), chosen=1)).splitlines()
  assert lines[0].startswith("2 4 5 6 = 32")
  assert lines[2] == "  * +  visits 3  value 0.43  prior 0.25"
  assert lines[3] == "    - 2  visits 1  value 0.43  prior 0.25"


def test_colours_grow_lighter_with_value_and_ink_stays_readable():
  def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

  shades = [value_colour(i / 50) for i in range(51)]
  lights = [luminance(fill) for fill, _ in shades]
  assert lights == sorted(lights)
  for fill, ink in shades:
    low, high = sorted((luminance(fill), luminance(ink)))
    assert (high + 0.05) / (low + 0.05) >= 4.5
  assert value_colour(float("nan"))[0] == "#8a8a8a" and value_colour(7.0) == value_colour(1.0)


def test_a_deep_tree_needs_no_recursion():
  chain = tree(*[node(i + 1, i, "x", visits=1) for i in range(3000)])
  assert tree_svg(chain, 4000).count("<rect") == 3001


@pytest.mark.parametrize(
  "broken",
  [
    {},
    {"nodes": []},
    {"nodes": 3},
    {"nodes": [{"id": 0}]},
    {"nodes": [node(0, -1), node(1, 2)]},
    {"nodes": [node(0, -1), node(0, -1)]},
    {"nodes": [node(0, -1), node(1, 0, visits="3")]},
    {"nodes": [node(0, -1), {**node(1, 0), "value": None}]},
  ],
)
def test_what_is_no_tree_is_refused(broken):
  for draw in (tree_svg, tree_text):
    with pytest.raises(UserError, match="no search tree"):
      draw(broken)


def test_the_key_is_well_formed():
  ET.fromstring(tree_key())
