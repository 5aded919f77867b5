import html.parser
import json
import re

import pytest
from scales import MULTIPLES, scale

from jaxzero.errors import UserError
from jaxzero.view.pictures import write_pictures
from jaxzero.view.report import write_report
from jaxzero.view.scaling import prm_section, scaling_sections


class _Balance(html.parser.HTMLParser):
  """Complains of tags that are not closed in turn; those HTML leaves open are left out."""

  def __init__(self):
    super().__init__()
    self.open = []

  def handle_starttag(self, tag, attrs):
    if tag not in ("th", "td", "tr", "p", "br", "path"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    if tag not in ("th", "td", "tr", "p", "path"):
      assert self.open.pop() == tag


def test_every_section_shows_its_numbers():
  text = scaling_sections(scale()) + prm_section(scale()["prm"])
  for title in (
    "Thinking longer: the verifier is heard inside",
    "Thinking longer: the value head chooses",
    "Thinking longer: the process reward model chooses",
    "Which problems gain",
    "Compute-optimal thinking",
    "Training longer",
    "Small and thinking, or large and quick",
    "Task by task",
    "The process reward model, graded",
  ):
    assert f"<h2>{title}</h2>" in text
  for number in (
    "+12.3 points (+9.0 to +15.0)",
    "+8.4 points",
    "0.27",
    "6.3T",
    "15.0 times",
    "0.87",
    "12 / 4",
    "process reward model 4.4TFLOP",
    "<td>17T<td>",
    "<td>2,000<td>1<td>",
  ):
    assert number in text
  balance = _Balance()
  balance.feed(text)
  assert balance.open == []
  assert text.count('<div class="wide"><svg') == text.count('<div class="narrow">') == 7


def test_every_strategy_has_a_line_of_its_own_look():
  text = scaling_sections(scale())
  first = text[: text.index("Thinking longer: the value head chooses")]
  wide = first[first.index('<div class="wide">') : first.index('<div class="narrow">')]
  groups = re.findall(r"<g><path d=\"\S+ [^\"]*\" style=\"fill:([^;]+);stroke:([^\"]+)\"", wide)
  titles = re.findall(r"<title>([^,]+), budget", wide)
  looks = dict(zip(titles, groups, strict=True))
  assert len(titles) == 2 + 10 * len(MULTIPLES)
  shapes = {}
  for name, d in zip(titles, re.findall(r'<g><path d="([^"]*)"', wide), strict=True):
    shapes[name] = re.sub(r"[\d. -]+", "", d)
  assert len({(*looks[name], shapes[name]) for name in looks}) == len(looks) == 12


def test_what_was_not_measured_is_left_out():
  value = scale()
  value["ways"] = [way for way in value["ways"] if way["rights"] in ("none", "verifier")]
  value |= {"larger": None, "transfer": [], "auto": {}, "comparisons": []}
  text = scaling_sections(value)
  assert re.findall(r"<h2>([^<]*)</h2>", text) == [
    "Thinking longer: the verifier is heard inside",
    "Which problems gain",
    "Training longer",
  ]


def test_an_accuracy_that_costs_nothing_has_no_ratio():
  value = scale()
  point = next(iter(value["auto"].values()))["points"][0]
  point |= {"accuracy": 0.0, "curve_tokens": 0.0, "ratio": 7e9, "ci95": [3e9, 4e11]}
  assert "7000000000" not in scaling_sections(value)


def test_a_mixtures_tasks_are_told_apart():
  value = scale()
  for end, share in zip(value["train_time"]["test"], (0.111, 0.555), strict=True):
    end["by_task"] = {"programs": {"problems": 250, "solved": 1, "accuracy": share}}
  text = scaling_sections(value)
  assert "<tr><th>programs<td>11.1 %<td>55.5 %<td>+44.4 points" in text


def test_the_report_takes_it_in_and_tells_of_damage(tmp_path):
  (tmp_path / "metrics.jsonl").write_text("")
  (tmp_path / "scale.json").write_text(json.dumps(scale()))
  assert "Compute-optimal thinking" in write_report(tmp_path).read_text()
  (tmp_path / "scale.json").write_text(json.dumps({"ways": 3}))
  with pytest.raises(UserError, match=r"scale\.json is damaged"):
    write_report(tmp_path)


def test_a_reward_model_and_its_cost_are_shown_without_a_study(tmp_path):
  entry = {"flops": 3e12, "seconds": 1.0, "forward_tokens": 1e3}
  (tmp_path / "metrics.jsonl").write_text("")
  # The story's summary was written before the reward model was made.
  (tmp_path / "summary.json").write_text(json.dumps({"ledger": {"pretrain": entry}}))
  (tmp_path / "ledger.json").write_text(json.dumps({"pretrain": entry, "prm": entry}))
  (tmp_path / "prm.json").write_text(json.dumps(scale()["prm"]))
  text = write_report(tmp_path).read_text()
  assert (
    "<h2>The process reward model, graded</h2>" in text and "Process reward model 50.0 %" in text
  )
  (tmp_path / "prm.json").write_text(json.dumps({"grades": 3}))
  with pytest.raises(UserError, match=r"prm\.json is damaged"):
    write_report(tmp_path)


def test_a_picture_for_every_chart(tmp_path):
  pytest.importorskip("matplotlib")
  paths = write_pictures(scale(), tmp_path / "scale")
  assert sorted(path.name for path in paths) == [
    "difficulty-best_of_n.png",
    "difficulty-mcts.png",
    "larger.png",
    "thinking-prm.png",
    "thinking-value.png",
    "thinking-verifier.png",
    "training.png",
  ]
  assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_without_matplotlib_a_sentence(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  assert write_pictures(scale(), tmp_path) == []
  assert "matplotlib is missing" in capsys.readouterr().err
