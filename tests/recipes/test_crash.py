"""A run killed at random moments ends in the same bits as one that was never killed."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("crash", ROOT / "benchmarks" / "crash.py")
crash = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(crash)


def test_kill_9_leaves_the_same_bits_as_an_uninterrupted_run(smoke_run, tmp_path):
  moments = crash.run_killed(tmp_path / "killed", kills=4, longest=16.0, seed=7)
  assert moments, "no kill hit the run"
  assert crash.differences(crash.contents(smoke_run), crash.contents(tmp_path / "killed")) == []
