"""Two real processes of four devices each run every stage, are stopped, and go on: as they were,
and as one process on another mesh."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks.faults import contents, differences
from jaxzero.recipes.verify import verify

ROOT = pathlib.Path(__file__).parents[2]
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # programs compile in half the time
SIZES = {
  "supervised.steps": 8,
  "supervised.evaluate-every": 4,
  "supervised.batch-size": 16,
  "improve.rounds": 2,
  "improve.steps-per-round": 4,
  "improve.batch-size": 16,
  "self-play.episodes-per-round": 16,
  "self-play.batch-size": 16,
  "evaluation.validation-problems": 8,
}


def train(folder, *arguments):
  sizes = [word for name, size in SIZES.items() for word in (f"--{name}", str(size))]
  return ["train", "configs/smoke.py", "--run", str(folder), *sizes, *arguments]


def two_processes(folder):
  launcher = ROOT / "launch" / "local_multiprocess.py"
  sizes = ("--processes", "2", "--devices-per-process", "4", "--module", "tests.recipes.two_stages")
  return subprocess.Popen(
    [sys.executable, str(launcher), *sizes, "--", *train(folder, "--mesh.fsdp", "2")],
    cwd=ROOT,
    env={**os.environ, **QUICK, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def finish(launcher):
  with launcher:
    output, _ = launcher.communicate(timeout=300)
  return launcher.returncode, output


def stopped_when(folder, path, launcher):
  """SIGTERM to the second process once `path` is there; the launcher's exit code and output."""
  deadline = time.monotonic() + 240
  while not (folder / path).exists() and time.monotonic() < deadline:
    assert launcher.poll() is None, finish(launcher)
    time.sleep(0.02)
  children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
  os.kill(int(children.stdout.split()[1]), signal.SIGTERM)
  return finish(launcher)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
  """A run that was stopped (and its copy as it was then), and one that never was."""
  root = tmp_path_factory.mktemp("hosts")
  whole, folder = root / "whole", root / "stopped"
  code, output = finish(two_processes(whole))
  assert code == 0, output
  path = "checkpoints/pretrain/digest-4.json"
  code, output = stopped_when(folder, path, two_processes(folder))
  assert code == 3, output
  assert "stopped at" in output and "Traceback" not in output, output
  shutil.copytree(folder, root / "learning")
  code, output = finish(two_processes(folder))
  assert code == 0, output
  return root


def rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_stopped_by_sigterm_and_continued_it_ends_in_the_same_bits(stopped):
  first = stopped / "learning" / "checkpoints" / "pretrain"
  steps = [int(path.stem.split("-")[1]) for path in first.glob("digest-*.json")]
  assert max(steps) > 4, "it was saved where it stopped, not at the last validation"
  assert differences(contents(stopped / "whole"), contents(stopped / "stopped")) == []
  assert verify(stopped / "stopped").damage == []


def test_each_host_wrote_its_own_shard_of_a_round(stopped):
  names = sorted(path.name for path in (stopped / "whole" / "episodes").glob("*.arrayrecord"))
  assert names == [f"episodes-{r:06d}-{p:05d}-of-00002.arrayrecord" for r in (0, 1) for p in (0, 1)]


def test_it_goes_on_as_one_process_with_the_same_data_order_and_losses(stopped, tmp_path):
  folder = tmp_path / "one"
  shutil.copytree(stopped / "learning", folder)
  env = {**os.environ, **QUICK, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "4"}
  env["PYTHONPATH"] = str(ROOT)
  command = [sys.executable, "-m", "tests.recipes.two_stages", *train(folder, "--mesh.fsdp", "4")]
  done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  here, there = rows(folder), rows(stopped / "whole")
  assert {row["kind"] for row in here} == {"pretrain", "round"}
  for a, b in zip(here, there, strict=True):
    assert (a["kind"], a["step"], a["batch_hash"]) == (b["kind"], b["step"], b["batch_hash"])
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_processes_with_different_commands_are_refused_before_anything_is_written(tmp_path):
  (tmp_path / "differ.py").write_text(
    "import os, sys\n"
    "from jaxzero import cli\n"
    "fsdp = str(2 ** (1 + int(os.environ['JAXZERO_PROCESS_ID'])))\n"
    "cli.main([*sys.argv[1:], '--mesh.fsdp', fsdp])\n"
  )
  launcher = ROOT / "launch" / "local_multiprocess.py"
  sizes = ("--processes", "2", "--devices-per-process", "2", "--module", "differ")
  done = subprocess.run(
    [sys.executable, str(launcher), *sizes, "--", *train(tmp_path / "run")],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  said = [line for line in done.stdout.splitlines() if "another command" in line]
  assert done.returncode == 2 and "config.mesh.fsdp: 2 there, 4 here" in said[0], done.stdout
  assert not (tmp_path / "run").exists()
