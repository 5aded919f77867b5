"""`slurm.sbatch`: one allocation, what it starts, and when it asks to be queued again."""

from __future__ import annotations

import re

import pytest
from shells import LAUNCH, TRAIN, StandIns, run

SBATCH = LAUNCH / "slurm.sbatch"
OPTIONS = {
  "job-name", "nodes", "ntasks-per-node", "gpus-per-node", "cpus-per-task", "requeue", "open-mode",
  "output", "signal",
}  # fmt: skip
"""Of sbatch's manual."""


@pytest.fixture
def checkout(tmp_path):
  """A checkout with jaxzero installed in it, and stand-ins for SLURM beside it."""
  root = tmp_path / "checkout"
  (root / "launch").mkdir(parents=True)
  for name in ("common.sh", "slurm.sbatch"):
    (root / "launch" / name).write_bytes((LAUNCH / name).read_bytes())
  program = root / ".venv" / "bin" / "jaxzero"
  program.parent.mkdir(parents=True)
  program.touch(mode=0o755)
  return root


def allocation(checkout, codes, before_exit=""):
  """Runs the script as SLURM would, from a copy elsewhere; srun ends with each code in turn."""
  stand_ins = StandIns(checkout.parent)
  code = stand_ins.answer("codes", [str(code) for code in codes])
  stand_ins.add("srun", f"{before_exit}\nexit $({code})")
  stand_ins.add("scontrol")
  spooled = checkout.parent / "slurm_script"
  spooled.write_bytes(SBATCH.read_bytes())
  env = {"SLURM_SUBMIT_DIR": str(checkout), "SLURM_JOB_ID": "17", **stand_ins.env}
  out = run(["bash", spooled, *TRAIN], env, cwd=checkout.parent)
  return out, stand_ins.calls


@pytest.mark.parametrize(
  ("codes", "starts", "requeued"),
  [
    ([0], 1, False),
    ([2], 1, False),
    ([3], 1, True),
    ([1, 0], 2, False),
    ([137, 3], 2, True),
    ([1, 1, 1, 0], 3, False),
  ],
)
def test_it_goes_on_as_the_exit_code_says(checkout, codes, starts, requeued):
  out, calls = allocation(checkout, codes)
  assert out.returncode == codes[starts - 1], out.stderr
  names = [call[0] for call in calls]
  assert names == ["srun"] * starts + ["scontrol"] * requeued
  if requeued:
    assert calls[-1] == ["scontrol", "requeue", "17"]


def test_a_cancelled_job_is_not_queued_again(checkout):
  out, calls = allocation(checkout, [3], before_exit="kill -TERM $PPID")
  assert out.returncode == 3, out.stderr
  assert [call[0] for call in calls] == ["srun"]


def test_every_task_gets_the_arguments_and_auto(checkout):
  _, calls = allocation(checkout, [0], 'echo "$JAXZERO_COORDINATOR" > coordinator')
  assert calls[0][-5:] == [".venv/bin/jaxzero", *TRAIN]
  assert (checkout.parent / "coordinator").read_text() == "auto\n"


def test_it_installs_once_what_the_accelerator_needs(checkout):
  (checkout / ".venv" / "bin" / "jaxzero").unlink()
  stand_ins = StandIns(checkout.parent)
  stand_ins.add("python3", "mkdir -p checkout/.venv/bin; cp pip checkout/.venv/bin/pip")
  stand_ins.add("pip")
  stand_ins.add("srun")
  env = {"SLURM_SUBMIT_DIR": str(checkout), **stand_ins.env}
  for extra, target in ((None, ".[cuda12]"), ("cuda13", ".[cuda13]"), ("", ".")):
    out = run(["bash", SBATCH, *TRAIN], env if extra is None else {**env, "EXTRA": extra})
    assert out.returncode == 0, out.stderr
    assert stand_ins.calls[-2] == ["pip", "install", "--quiet", "-e", target]


def test_its_options_are_sbatchs_and_fit_jax():
  lines = re.findall(r"^#SBATCH --([a-z-]+)(?:=(.+))?$", SBATCH.read_text(), re.M)
  options = dict(lines)
  assert len(lines) == SBATCH.read_text().count("\n#SBATCH")
  assert set(options) <= OPTIONS
  # jax's SlurmCluster gives a process the one GPU of its SLURM_LOCALID.
  assert options["ntasks-per-node"] == options["gpus-per-node"]
  # Without "B:", which would signal this script alone, the tasks hear it.
  assert re.fullmatch(r"TERM@\d+", options["signal"])
  assert "requeue" in options and options["open-mode"] == "append"


def test_away_from_the_checkout_it_says_where_to_submit(tmp_path):
  out = run(["bash", SBATCH, *TRAIN], {"SLURM_SUBMIT_DIR": str(tmp_path)})
  assert (out.returncode, "root of the checkout" in out.stderr) == (2, True)
