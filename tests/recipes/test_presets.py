"""Every config in configs/ is sound, and its programs lower on a mesh of its own size."""

import json
import pathlib
import runpy
import subprocess
import sys

import pytest

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").glob("*.py"))
WORKER = pathlib.Path(__file__).parent / "lower_presets.py"


@pytest.fixture(scope="module")
def lowered():
  """{preset: how many gathers its train step and its search hold, over how many shards}."""
  done = subprocess.run([sys.executable, WORKER, *CONFIGS], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
  return {row.pop("preset"): row for row in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_preset_is_sound_and_lowers_on_its_own_mesh(lowered, path):
  experiment, program = runpy.run_path(str(path))["config"], lowered[path.stem]
  experiment.check()
  assert experiment.supervised.batch_size % program["shards"] == 0
  assert experiment.improve.batch_size % (program["shards"] * experiment.improve.micro_batches) == 0
  assert (program["step"] > 0) == (experiment.mesh.fsdp > 1)
  assert program["search"] == 0, "a search finds its parameters gathered"


def test_presets_reach_from_under_a_million_parameters_to_seven_billion():
  sizes = {path.stem: runpy.run_path(str(path))["config"].model.parameters(300) for path in CONFIGS}
  assert sizes["smoke"] < 1e6 and 6.9e9 < sizes["xlarge"] < 8.1e9
  assert sizes["smoke"] < sizes["quickstart"] < sizes["small"] < sizes["base"] < sizes["large"]
