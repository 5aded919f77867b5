"""A run's books: what a stage logged and spent is there once, wherever it was stopped."""

import json
import runpy
from pathlib import Path

import pytest

from jaxzero.errors import UserError
from jaxzero.recipes.run import Run, load_experiment

SMOKE = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "smoke.py"))["config"]


class Killed(Exception):
  pass


def two_stages(folder, moments=99):
  """A stage without checkpoints and one with three; killed at the given moment."""
  checkpoint = folder / "checkpoint.json"

  def moment():
    nonlocal moments
    moments -= 1
    if moments == 0:
      raise Killed

  def work(run, kind):
    run.log(kind=kind)
    run.charge("learn", 1.0, 0.5, 2.0)
    moment()

  def one(run):
    work(run, "one")
    return {}

  def two(run):
    done = 0
    if checkpoint.exists():
      done, books = json.loads(checkpoint.read_text())
      run.rewind(books)
    for number in range(done, 3):
      work(run, f"two {number}")
      books = run.commit()
      moment()
      checkpoint.write_text(json.dumps([number + 1, books]))
      moment()
    return {}

  with Run(folder, SMOKE) as run:
    run.stage("one", lambda: one(run))
    run.stage("two", lambda: two(run))
    return [row["kind"] for row in run.metrics], run.ledger


def test_a_stage_killed_anywhere_keeps_the_books_of_one_that_never_was(tmp_path):
  whole = two_stages(tmp_path / "whole")
  assert whole[0] == ["one", "two 0", "two 1", "two 2"]
  assert whole[1]["learn"] == {"flops": 4.0, "seconds": 2.0, "forward_tokens": 8.0}
  for moments in range(1, 11):
    folder = tmp_path / str(moments)
    with pytest.raises(Killed):
      two_stages(folder, moments)
    assert two_stages(folder) == whole, f"killed at moment {moments}"
    assert two_stages(folder) == whole, "and once more, with nothing left to do"


def test_a_config_from_before_a_field_was_there_means_its_default(tmp_path):
  two_stages(tmp_path / "run")
  path = tmp_path / "run" / "config.json"
  saved = json.loads(path.read_text())
  del saved["improve"]["loss"]["policy_weight"]
  path.write_text(json.dumps(saved))
  assert load_experiment(tmp_path / "run") == SMOKE
  two_stages(tmp_path / "run")
  path.write_text(json.dumps({**saved, "colour": "red"}))
  with pytest.raises(UserError, match=r"of another version \(unknown keys \['colour'\]\)"):
    load_experiment(tmp_path / "run")
  with pytest.raises(UserError, match=r"unknown keys \['colour'\]\); use another folder"):
    two_stages(tmp_path / "run")
