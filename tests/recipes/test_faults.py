"""The crash matrix, shortly: killed, stopped or failed anywhere, a run goes on to the same bits.
The long form is benchmarks/faults.py."""

import pytest

from benchmarks import faults


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
  return faults.Drill(tmp_path_factory.mktemp("drill"))


def test_the_points_cover_every_kind_of_write(drill):
  kinds = {name.split(" ", 2)[2] for name in drill.points}
  assert {"shard", "manifest.json", "digest", "orbax", "metrics.jsonl", "result"} <= kinds
  for step in ("before write", "half write", "after write", "before fsync", "before rename"):
    assert f"{step} manifest.json" in drill.points and f"{step} digest" in drill.points


def test_kills_at_named_points_lose_double_and_tear_nothing(drill):
  found = drill.kills(5, seed=5)
  assert found.hit == 5 and found.wrong == []


def test_a_stop_at_a_named_point_saves_and_goes_on_to_the_same_bits(drill):
  found = drill.stops(1, seed=3)
  assert found.hit >= 1 and found.wrong == []


@pytest.mark.parametrize("action", ["full", "broken"])
def test_a_disk_that_fails_at_a_named_point_is_one_sentence(drill, action):
  found = drill.errors(1, action, seed=1)
  assert found.hit == 1 and found.wrong == []


def test_kill_9_at_random_moments_leaves_the_bits_of_an_uninterrupted_run(smoke_run, tmp_path):
  moments = faults.run_disturbed(tmp_path / "killed", times=2, longest=16.0, seed=7)
  assert moments, "no kill hit the run"
  whole, killed = faults.contents(smoke_run), faults.contents(tmp_path / "killed")
  assert faults.differences(whole, killed) == []
