import html.parser
import json
import re

import pytest

from jaxzero.errors import UserError
from jaxzero.view.plots import Series, escape, figure, si
from jaxzero.view.report import write_report

EVIL = "<script>alert(1)</script>"


def result(strategy, budget, solved, tokens):
  return {
    "task": "countdown",
    "split": "test",
    "strategy": strategy,
    "budget": budget,
    "problems": 500,
    "solved": solved,
    "accuracy": solved / 500,
    "ci95": [solved / 500 - 0.04, solved / 500 + 0.03],
    "forward_tokens_per_problem": tokens,
    "flops_per_problem": tokens * 1.7e6,
    "wall_s": 3.0,
    "step": 480,
    "seed": 0,
    "verified_inside": strategy == "mcts",
  }


@pytest.fixture
def run(tmp_path):
  stage = {"flops": 2e14, "seconds": 100.0, "forward_tokens": 4e7}
  summary = {
    "config": {},
    "seed": 0,
    "task": "countdown",
    "parameters": 812345,
    "supervised": result("greedy", 64, 206, 31.0),
    "control": result("greedy", 64, 234, 31.2),
    "self_play": result("greedy", 64, 317, 32.5),
    "search": [result("mcts", 33, 321, 27.0), result("mcts", 1056, 463, 845.0)],
    "search_supervised": [result("mcts", 33, 211, 28.0)],
    "sample": [result("sample", 4, 365, 132.0), result("best_of_n", 400, 366, 140.0)],
    "ledger": {name: stage for name in ("pretrain", "selfplay", "learn", "control", "eval")},
    "wall_s": 740.1,
    "peak_rss_bytes": 2.1e9,
  }
  rows = [
    {"kind": "pretrain", "step": 100, "loss": 1.0, "flops": 1e14, "validation_accuracy": 0.3125},
    {"kind": "pretrain", "step": 150, "loss": 0.9, "flops": 2e14},
    {"kind": "round", "round": 0, "step": 0, "solved_share": 0.512, "flops": 3e14},
    {"kind": "round", "round": 1, "step": 8, "flops": 4e14, "validation_accuracy": 0.4375},
    {"kind": "control", "step": 100, "flops": 2e14, "validation_accuracy": 0.375},
  ]
  node = {"prior": 0.5, "visits": 1, "value": 0.5, "terminal": False, "right": None, "order": 0}
  nodes = [
    {**node, "id": 0, "parent": -1, "token": ""},
    {**node, "id": 1, "parent": 0, "token": EVIL},
  ]
  tree = {"problem": "2 5 = 10", "prefix": "", "num_simulations": 1, "nodes": nodes, "chosen": 1}
  trees = [{**tree, "answer": EVIL, "correct": i == 0, "thinking": EVIL} for i in range(3)]
  (tmp_path / "summary.json").write_text(json.dumps(summary))
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "trees.json").write_text(json.dumps(trees))
  return tmp_path


def page(run):
  return write_report(run).read_text()


class _Loads(html.parser.HTMLParser):
  """Collects what could make a browser load or run anything."""

  def __init__(self):
    super().__init__()
    self.found = []

  def handle_starttag(self, tag, attrs):
    if tag in ("script", "img", "link", "iframe", "object", "embed", "base", "audio", "video"):
      self.found.append(tag)
    for name, value in attrs:
      if name.startswith("on") or name in ("src", "href", "xlink:href", "srcset", "action"):
        self.found.append((name, value))


def test_the_page_loads_and_runs_nothing(run):
  text = page(run)
  loads = _Loads()
  loads.feed(text)
  assert loads.found == []
  assert "://" not in text and "@import" not in text
  assert set(re.findall(r"url\(([^)]*)\)", text)) == {"#value-scale"}
  assert "default-src 'none'" in text
  assert len(text) < 200_000


def test_text_from_models_is_escaped(run):
  text = page(run)
  assert "<script" not in text
  assert text.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3 * 3


def test_numbers_of_all_figures_appear(run):
  text = page(run)
  for number in ("41.2 %", "46.8 %", "63.4 %", "92.6 %", "64.2 %", "42.2 %", "73.0 %", "73.2 %"):
    assert number in text
  assert "59.4 to 66.4 %" in text and "317 of 500" in text
  for accuracy in ("31.2%", "43.8%", "37.5%"):
    assert accuracy in text
  assert "+16.6 points" in text and "\N{MINUS SIGN}5.6 points" in text
  assert text.count("20.0 %") >= 10 and "51.2 %" in text
  assert "812k parameters" in text and "12 min 20 s" in text
  assert "Unfinished" not in text and 'class="missing"' not in text


def test_control_starts_where_pre_training_ended(run):
  text = page(run)
  assert "control: 37.5% after 400 TFLOP" in text
  assert "self-play: 43.8% after 400 TFLOP" in text


def test_light_and_dark_and_phones_are_served(run):
  text = page(run)
  assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
  assert text.count('class="wide"') == text.count('class="narrow"') == 2


def test_an_unfinished_run_gets_a_partial_page(run):
  (run / "summary.json").unlink()
  (run / "trees.json").unlink()
  with (run / "metrics.jsonl").open("a") as file:
    file.write('{"kind": "rou')
  text = page(run)
  assert "Unfinished" in text and "5 rows" in text
  assert "self-play: 43.8%" in text
  for name in ("summary.json", "trees.json"):
    assert f"looked in {name}" in text


@pytest.mark.parametrize("name", ["metrics.jsonl", "trees.json"])
def test_a_missing_file_is_named(run, name):
  (run / name).unlink()
  assert f"looked in {name}" in page(run)


@pytest.mark.parametrize(
  "key", ["supervised", "control", "self_play", "search", "search_supervised", "sample", "ledger"]
)
def test_any_part_of_the_summary_may_be_missing(run, key):
  summary = json.loads((run / "summary.json").read_text())
  del summary[key]
  (run / "summary.json").write_text(json.dumps(summary))
  assert "</html>" in page(run)


def test_no_run_and_an_empty_folder_are_refused(tmp_path):
  with pytest.raises(UserError, match="there is no run at"):
    write_report(tmp_path / "nowhere")
  with pytest.raises(UserError, match=r"neither summary\.json nor metrics\.jsonl"):
    write_report(tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ['{"seed": ', "[]", '{"supervised": {"accuracy": 1}}', "\xff"])
def test_a_damaged_summary_is_named(run, damage):
  (run / "summary.json").write_bytes(damage.encode("latin-1"))
  with pytest.raises(UserError, match=r"summary\.json is damaged"):
    write_report(run)


@pytest.mark.parametrize(
  "damage", ['{"a": 1}', "[1]", "[{}]", '[{"problem": "1", "nodes": 3}]', "["]
)
def test_damaged_trees_are_named(run, damage):
  (run / "trees.json").write_text(damage)
  with pytest.raises(UserError, match=r"trees\.json is damaged"):
    write_report(run)


def test_figures_survive_odd_numbers():
  nan = float("nan")
  assert "Nothing to draw" in figure([Series("a", [1, 2], [nan, nan], 0)], "t", "x", "y")
  assert "Nothing to draw" in figure([Series("a", [0.0], [0.5], 0)], "t", "x", "y", log_x=True)
  for x, y in [
    ([5], [0.0]),
    ([1, 1], [1.0, 1.0]),
    ([1, 1e9], [0.1, nan]),
    ([3e-3, 4e-3], [0.5, 1]),
  ]:
    for log_x in (False, True):
      drawn = figure([Series("a", x, y, 0)], "t", "x", "y", log_x)
      assert "nan" not in drawn and "inf" not in drawn


def test_escape_and_si():
  assert escape('<a href="x">&\x00\u202e') == "&lt;a href=&quot;x&quot;&gt;&amp;\ufffd\ufffd"
  assert [si(v) for v in (0, 12, 999, 1234, 2.1e14, 5e-4)] == [
    "0", "12", "999", "1.23k", "210T", "0.0005",
  ]  # fmt: skip
