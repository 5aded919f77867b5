"""The study of benchmarks/recipe.py and benchmarks/rules.py: what is done once, again, or not at
all, what the tables say, and whether the ledger counts what the programs do."""

import json
import pathlib
import shutil
import types

import numpy as np
import pytest

from benchmarks import flops, recipe, rules, tables
from jaxzero.errors import UserError
from jaxzero.evals.curves import pack
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, load_experiment

CONFIGS = recipe.CONFIGS
SMOKE = [f"--{kind}={CONFIGS / 'smoke.py'}" for kind in ("model", "small", "large")]


@pytest.fixture
def folder(smoke_run, tmp_path):
  """A study's folder into which a finished run was put."""
  shutil.copytree(smoke_run, tmp_path / "model0")
  return tmp_path


def made(folder, *more):
  return recipe.Recipe(
    recipe.parse(["--folder", str(folder), "--seeds", "0", "--problems", "8", *SMOKE, *more])
  )


def in_a_part(study):
  return study.clock.of("scale")


def test_every_part_is_there(folder):
  study = made(folder)
  assert all(callable(getattr(study, part)) for part in recipe.PARTS)
  assert recipe.parse(["--folder", "x"]).parts == list(recipe.PARTS)


def test_a_part_is_done_again_only_where_what_it_depends_on_is_another(folder, monkeypatch):
  calls = []

  def scale(run, config, larger):
    calls.append((run.name, config.problems))
    return {"number": len(calls)}

  monkeypatch.setattr(recipe, "scale", scale)
  study, run = made(folder), folder / "model0"
  with in_a_part(study):
    assert study._scaled(study.trained("model", 0)) == {"number": 1}
  again = made(folder)
  with in_a_part(again):
    assert again._scaled(run) == {"number": 1}
  other = made(folder, "--problems", "9")
  with in_a_part(other):
    assert other._scaled(run) == {"number": 2}
    (run / "prm.json").write_text("{}")
    assert other._scaled(run) == {"number": 3}
  assert calls == [("model0", 8), ("model0", 9), ("model0", 9)]


def test_a_run_that_was_put_there_is_not_trained_and_its_time_is_told(folder, capsys, monkeypatch):
  monkeypatch.setattr(recipe, "Run", None)  # nobody opens it
  rows = [types.SimpleNamespace(right=i % 2 == 0, forward_tokens=9) for i in range(8)]
  monkeypatch.setattr(recipe, "evaluate", lambda *_, **__: ({"solved": 4, "problems": 8}, rows))
  study = made(folder)
  with study.clock.of("base"):
    study.base()
  tables.wall_time(study.clock.total(), study.brought())
  shown = capsys.readouterr().out
  assert "| after self-play | 50.0% (12.5% to 87.5%) | 50.0% | +0.0 (+0.0 to +0.0) |" in shown
  results = [folder / "model0" / "results" / f"{s}.json" for s in ("supervised", "self_play")]
  spent = sum(json.loads(path.read_text())["books"]["seconds"] for path in results)
  assert study.brought() == pytest.approx(spent) and spent > 0
  assert set(study.clock.total()) == {"base"}


def test_a_run_of_another_model_is_refused(folder):
  study = made(folder, "--model", str(CONFIGS / "micro.py"))
  with pytest.raises(UserError, match=r"model0 is a run of another model.* give its config as"):
    study.trained("model", 0)


def test_time_adds_up_over_sessions(tmp_path):
  for _ in range(2):
    clock = recipe.Clock(tmp_path)
    with pytest.raises(KeyboardInterrupt), clock.of("prm"):
      clock.begin -= 100.0
      raise KeyboardInterrupt
  assert clock.total() == {"prm": pytest.approx(200.0, abs=1.0)}


def test_a_task_brings_its_lengths():
  found = recipe.read_config(CONFIGS / "micro.py", "programs")
  task, model = (recipe.read_config(CONFIGS / f"{name}.py", None) for name in ("programs", "micro"))
  assert (found.task, found.max_prompt, found.model) == (task.task, task.max_prompt, model.model)
  assert found.self_play.play.max_tokens == task.self_play.play.max_tokens


def test_a_branch_goes_on_from_the_bases_pre_training(smoke_run, tmp_path):
  experiment = rules.changed(load_experiment(smoke_run), {"self_play.curriculum": True})
  rules.branch(smoke_run, tmp_path / "run", experiment)
  books = json.loads((smoke_run / "results" / "supervised.json").read_text())["books"]
  with Run(tmp_path / "run", experiment) as run:
    run.stage("supervised", pytest.fail)
    assert run.ledger == books["ledger"] and len(run.metrics) == books["metrics_rows"]
    assert run.experiment.self_play.curriculum


@pytest.mark.parametrize("checkable, deep", [(True, "mcts"), (False, "majority")])
def test_no_rule_is_judged_by_a_value_head_that_it_does_not_train(checkable, deep, monkeypatch):
  asked = []

  def evaluate(engine, params, problems, strategy, budget, **_):
    asked.append((strategy, budget))
    return {}, [types.SimpleNamespace(right=True)]

  monkeypatch.setattr(rules, "evaluate", evaluate)
  task = types.SimpleNamespace(self_checkable=checkable, problems=lambda *_: [])
  engine = types.SimpleNamespace(max_tokens=10)
  run = types.SimpleNamespace(task=task, engine=engine, experiment=Experiment())
  assert rules.outcomes(run, None) == {"greedy": [True], deep: [True]}
  assert asked == [("greedy", 10), (deep, 80)]


def test_the_rules_table_averages_seeds_by_problem(capsys):
  right = [[True, False] * 20, [True, True] * 20]
  base = [{"greedy": [False] * 40, "majority": one} for one in right]
  tests = {"supervised": base, "grpo": [{"greedy": one, "majority": one, "played": 1.0,
                                         "learned": 1.0} for one in right]}  # fmt: skip
  rules.print_tests(tests, 2.0)
  shown = capsys.readouterr().out
  assert "majority, 8 x longest" in shown and "| grpo | 50.0%, 100.0% | 75.0% (" in shown
  assert "greedy: grpo minus supervised +75.0%" in shown
  arguments = rules.parse(["--folder", "x", "--base", "a", "b"])
  assert arguments.base == [pathlib.Path("a"), pathlib.Path("b")] and arguments.settings == 8


def test_tables_of_searches_are_of_all_seeds(tmp_path, capsys):
  """Best-of-N solves a quarter, then half of the problems; tree search and auto half at once."""
  multiples, count, folders, records = (1, 2), 40, [], []
  easy = np.arange(count) % 4 == 0, np.arange(count) % 2 == 0
  for seed in range(2):
    place = tmp_path / f"small{seed}" / "scale"
    place.mkdir(parents=True)

    def cell(name, right, tokens, flops, place=place):
      value = {**pack(right, [tokens] * count), "flops_per_problem": flops}
      (place / name).write_text(json.dumps({"value": value}))
      return {"cell": name}

    ways = [
      {
        "strategy": strategy,
        "rights": "verifier",
        "points": [
          {"multiple": m, **cell(f"{strategy}{m}", right, 10 * m, 1e6 * m)}
          for m, right in zip(multiples, solved, strict=True)
        ],
      }
      for strategy, solved in (("best_of_n", easy), ("mcts", easy[1:] * 2), ("auto", easy[1:] * 2))
    ]
    size = {"parameters": 10, "train_flops": 1e9, "worked_examples": 5}
    record = {"multiples": list(multiples), "ways": ways}
    record["auto"] = {"verifier": {"tried": 12, "against_tried": 4}}
    record["larger"] = {**size, "small": size, "test": cell("greedy", easy[0], 10, 1.5e6)}
    folders.append(place.parent)
    records.append(record)
  pooled = tables.pooled(folders, records)
  tables.curves(tmp_path, pooled, multiples)
  tables.auto(pooled, records[0])
  tables.larger(folders, records)
  shown = capsys.readouterr().out
  assert "| best_of_n/verifier | 25.0% | 50.0% |" in shown
  assert "| mcts/verifier - best_of_n/verifier | +25.0 (" in shown
  assert "| auto/verifier | 1x | 50.0% | 10 | 20 | 0.50 (" in shown and "| 12 / 4 |" in shown
  assert "| mcts/verifier | 1x | 1e+06 | 50.0% | 50.0%, 50.0% | +25.0 (" in shown
  assert "| mcts/verifier | 2x | 2e+06" not in shown
  assert json.loads((tmp_path / "curves.json").read_text())["accuracy"]


@pytest.mark.parametrize("program", ["decode", "scores", "train"])
def test_the_ledgers_flops_are_those_of_the_programs(program):
  found = flops.ratios(Experiment(), program)
  assert len(found) == 1
  assert all(0.95 < ratio < 1.05 for ratio in found.values()), found
