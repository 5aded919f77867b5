"""The scaling study, end to end on a tiny run."""

import dataclasses
import json
import shutil

import pytest

from jaxzero.cli.scale import scale as cli_scale
from jaxzero.errors import Preempted, UserError
from jaxzero.evals.curves import rights
from jaxzero.evals.settings import Way, grid
from jaxzero.loading import load
from jaxzero.parallel import preemption
from jaxzero.recipes import study as study_lib
from jaxzero.recipes.scale import scale
from jaxzero.recipes.study import ScaleConfig
from jaxzero.recipes.thinkers import Rival, train_flops
from jaxzero.search.choose import Choice

CONFIG = ScaleConfig(
  problems=8,
  validation_problems=8,
  budgets=(1, 2),
  strategies=("greedy", "sample", "majority", "best_of_n", "auto"),
  rights=("verifier",),
  difficulty_samples=2,
)

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def run(smoke_run, tmp_path_factory):
  return shutil.copytree(smoke_run, tmp_path_factory.mktemp("scale") / "run")


@pytest.fixture(scope="module")
def counted(run):
  """The study's result, and how many evaluations it took."""
  calls, original = [], study_lib.evaluate

  def evaluate(*arguments, **words):
    calls.append(1)
    return original(*arguments, **words)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(study_lib, "evaluate", evaluate)
    before = json.loads((run / "ledger.json").read_text())
    result = scale(run, CONFIG, Rival.of(load(run), run))
    first = len(calls)
    again = scale(run, CONFIG, Rival.of(load(run), run))
  return result, again, first, len(calls) - first, before


def test_the_study_is_whole(run, counted):
  result, again, evaluations, _, _ = counted
  assert again == json.loads((run / "scale.json").read_text())
  found = {(way["strategy"], way["rights"]): way for way in result["ways"]}
  assert set(found) == {
    ("greedy", "none"),
    ("sample", "none"),
    ("majority", "none"),
    ("best_of_n", "verifier"),
    ("auto", "verifier"),
  }
  for (strategy, _), way in found.items():
    assert len(way["points"]) == (1 if strategy in ("greedy", "sample") else 2)
    for point in way["points"]:
      assert point["problems"] == 8 and point["forward_tokens_per_problem"] <= point["budget"]
      cell = json.loads((run / "scale" / point["cell"]).read_text())["value"]
      assert rights(cell).sum() == point["solved"] and len(cell["tokens"]) == 8
  tried = found["best_of_n", "verifier"]["tried"]
  assert [one["setting"] for one in tried] == grid(Way("best_of_n", "verifier"))
  assert all(one["split"] == "validation" for one in tried)
  assert result["larger"]["test"]["accuracy"] == result["larger"]["small"]["test"]["accuracy"]
  assert [len(one["points"]) for one in result["auto"].values()] == [2]
  plans = json.loads((run / "plan.json").read_text())
  assert plans == {"verifier": result["auto"]["verifier"]["plan"]}
  assert "Thinking longer: the verifier is heard inside" in (run / "report.html").read_text()
  assert evaluations == len(list((run / "scale").glob("*.json")))


def test_no_cell_is_measured_twice_and_all_are_in_the_ledger(run, counted):
  result, again, _, repeated, before = counted
  assert repeated == 0
  assert {**again, "wall_s": 0} == {**result, "wall_s": 0}
  after = json.loads((run / "ledger.json").read_text())
  cells = [json.loads(p.read_text())["value"] for p in (run / "scale").glob("*.json")]
  spent = sum(cell["flops_per_problem"] * cell["problems"] for cell in cells)
  assert after["eval"]["flops"] - before["eval"]["flops"] == pytest.approx(spent)
  assert {k: v for k, v in after.items() if k != "eval"} == {
    k: v for k, v in before.items() if k != "eval"
  }


def test_auto_thinks_by_the_runs_plan(run, counted):
  loaded = load(run)
  problem = loaded.engine.task.problems("test", 0, 1)[0]
  assert loaded.plan().to_dict() == counted[0]["auto"]["verifier"]["plan"]
  assert loaded.plan(Choice(score="value")) is None
  assert loaded.solve(problem.prompt, "auto", budget=60).forward_tokens <= 60


def test_another_study_loses_neither_record_nor_plan(run, counted, tmp_path, capsys):
  other = shutil.copytree(run, tmp_path / "run")
  before, plan = (other / "scale.json").read_bytes(), {"value": {"bins": [], "edges": []}}
  (other / "plan.json").write_text(json.dumps(plan))
  for _ in range(2):  # the second time nothing differs
    result = scale(other, CONFIG)
  assert result["larger"] is None
  (kept,) = (other / "scale" / "earlier").iterdir()
  assert kept.read_bytes() == before and str(kept) in capsys.readouterr().err
  plans = json.loads((other / "plan.json").read_text())
  assert plans == {**plan, "verifier": counted[0]["auto"]["verifier"]["plan"]}


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"transfer": ("sums",)}, "unknown task 'sums'"),
    ({"transfer": ("programs",)}, "tokens, over this model's prompt limit of 16"),
    ({"budgets": (1, 100_000)}, "must lie in 1..65536"),
    ({"strategies": ("best_of_n",), "rights": ("prm",)}, "leave nothing to measure"),
    ({"validation_problems": 3}, "--validation-problems 3 make no 4 bins"),
  ],
)
def test_what_a_run_cannot_be_asked_is_refused_before_it_is_measured(
  run, counted, monkeypatch, change, sentence
):
  monkeypatch.setattr(study_lib, "charge_evaluation", None)  # no cell is new
  with pytest.raises(UserError, match=sentence):
    scale(run, dataclasses.replace(CONFIG, **change))


def test_a_larger_run_without_books_is_told(run, tmp_path):
  with pytest.raises(UserError, match=r"ledger\.json does not tell what"):
    Rival.of(load(run), tmp_path)


@pytest.mark.parametrize(
  "change, sentence",
  [
    ({"problems": 0}, "--problems 0 must be at least 1"),
    ({"validation_problems": 0}, "--validation-problems 0 must be at least 1"),
    ({"budgets": (0, 1)}, "--budgets 0 1 must be rising multiples"),
    ({"budgets": (4, 2)}, "--budgets 4 2 must be rising multiples"),
    ({"budgets": ()}, "must be rising multiples"),
    ({"strategies": ("magic",)}, "--strategies magic is unknown"),
    ({"rights": ("oracle",)}, "--rights oracle is unknown"),
  ],
)
def test_bad_studies_are_one_sentence(tmp_path, change, sentence):
  with pytest.raises(UserError, match=sentence):
    scale(tmp_path, ScaleConfig(**change))


def test_an_unfinished_run_is_told(run, counted, tmp_path):
  (tmp_path / "config.json").write_bytes((run / "config.json").read_bytes())
  with pytest.raises(UserError, match="has not finished its self-play"):
    scale(tmp_path, CONFIG)


def test_a_larger_run_of_another_task_is_told(run):
  rival = Rival.of(load(run), run)
  other = dataclasses.replace(rival.task, max_number=99)
  with pytest.raises(UserError, match=r"\(max_number: 99 there, .* here\); give a larger run"):
    scale(run, CONFIG, dataclasses.replace(rival, task=other))


def test_students_of_one_config_and_other_lessons_are_no_one_model(run, tmp_path):
  student = dataclasses.replace(load(run), stage="distill")
  keys = []
  for lessons in ("paths", "trees"):
    (tmp_path / "distill.json").write_text(json.dumps({"config": {"targets": lessons}}))
    (tmp_path / "ledger.json").write_text("{}")
    keys.append(Rival.of(student, tmp_path).thinker.identity)
  assert keys[0] != keys[1] and keys[0] == {**keys[1], "lessons": keys[0]["lessons"]}
  (tmp_path / "ledger.json").write_text("[]")
  with pytest.raises(UserError, match=r"ledger.json does not tell"):
    Rival.of(student, tmp_path)


def test_a_signal_stops_a_study_between_its_cells(smoke_run, tmp_path, monkeypatch):
  folder = shutil.copytree(smoke_run, tmp_path / "run")
  heard = lambda: monkeypatch.setattr(preemption, "reached", lambda: True)  # noqa: E731
  monkeypatch.setattr(preemption, "listen", heard)
  with pytest.raises(Preempted, match="a cell of the study"):
    cli_scale([str(folder), "--problems", "4", "--strategies", "greedy"])
  assert not (folder / "scale").exists()


def test_training_flops_hold_all_that_made_a_model():
  names = ("pretrain", "selfplay", "learn", "control", "teacher", "distill", "prm", "eval")
  ledger = {name: {"flops": 10.0**i} for i, name in enumerate(names)}
  expected = {"pretrain": 1.0, "self_play": 111.0, "control": 1001.0, "distill": 110_000.0}
  assert {stage: train_flops(ledger, stage) for stage in expected} == expected
  assert train_flops(ledger, "self_play", prm=True) == 1_000_111.0
