"""`tpu_vm.sh`: what it asks of gcloud, and what it does about a slice or a run that ended."""

from __future__ import annotations

import shlex

import pytest
from shells import LAUNCH, StandIns, run

TPU = [LAUNCH / "tpu_vm.sh"]
ENV = {"TPU_NAME": "zero", "ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-16"}
JOB = ("train", "configs/smoke.py", "--run", "/shared/a run")


def steps(calls):
  """Each call of gcloud in a word: which verb, or which hosts it was for."""
  words = ("create", "describe", "scp", "delete", "--worker=0", "--worker=all")
  return [next(word for word in call if word in words) for call in calls]


def dry(*arguments):
  out = run([*TPU, "--dry-run", *arguments], ENV)
  assert out.returncode == 0, out.stderr
  return [shlex.split(line) for line in out.stdout.splitlines()]


def gcloud(tmp_path, states, last_lines=()):
  """A stand-in whose slice goes through states, and whose host 0 tells the log's last line."""
  stand_ins = StandIns(tmp_path)
  describe = stand_ins.answer("states", states)
  look = stand_ins.answer("last_lines", last_lines)
  stand_ins.add("gcloud", f'case "$*" in *describe*) {describe} ;; *pgrep*) {look} ;; esac')
  return stand_ins


def test_up_creates_waits_installs_and_runs_on_all_workers():
  commands = dry("up", *JOB)
  assert steps(commands) == ["create", "describe", "scp", "--worker=all", "--worker=all"]
  assert all("--zone=us-west4-a" in command for command in commands)
  install, start = (command[-2] for command in commands[3:])
  assert "pip install -e '.[tpu,gcs]'" in install
  assert "JAXZERO_COORDINATOR=auto" in start
  assert "jaxzero train configs/smoke.py --run '/shared/a run';" in start


@pytest.mark.parametrize("verb", ["create", "wait", "install", "logs", "restart", "run", "up"])
def test_it_deletes_only_when_told_to(verb):
  assert "delete" not in steps(dry(verb, *JOB))
  assert steps(dry("delete")) == ["delete"]


@pytest.mark.parametrize(
  ("states", "expected"),
  [
    (["ACTIVE"], ["describe", "--worker=all"]),
    (
      ["SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"],
      ["describe", "delete", "create", "describe", "describe", "scp"] + ["--worker=all"] * 2,
    ),
  ],
)
def test_restart_replaces_only_a_preempted_slice(tmp_path, states, expected):
  stand_ins = gcloud(tmp_path, states)
  out = run([*TPU, "restart", *JOB], {**ENV, **stand_ins.env})
  assert out.returncode == 0, out.stderr
  assert steps(stand_ins.calls) == expected


@pytest.mark.parametrize(
  ("last_lines", "code", "starts"),
  [
    (["running", "exit code 0"], 0, 0),
    (["exit code 2"], 2, 0),
    (["exit code 3", "running", "exit code 3", "exit code 0"], 0, 2),
    (["exit code 1", "", "exit code 0"], 0, 2),
    (["exit code 1"] * 9, 1, 3),
    (["exit code 3"] * 5 + ["exit code 0"], 0, 5),
  ],
)
def test_watch_starts_a_run_again_as_its_exit_code_says(tmp_path, last_lines, code, starts):
  stand_ins = gcloud(tmp_path, ["ACTIVE"] * 10, last_lines)
  out = run([*TPU, "watch", *JOB], {**ENV, **stand_ins.env})
  assert out.returncode == code, out.stderr
  assert steps(stand_ins.calls).count("--worker=all") == starts
  assert "delete" not in steps(stand_ins.calls)


def test_watch_replaces_a_preempted_slice_and_goes_on(tmp_path):
  stand_ins = gcloud(tmp_path, ["ACTIVE", "SUSPENDED", "SUSPENDED", "ACTIVE", "ACTIVE"], [""])
  (tmp_path / "last_lines").write_text("running\nexit code 0\n")
  out = run([*TPU, "watch", *JOB], {**ENV, **stand_ins.env})
  assert out.returncode == 0, out.stderr
  assert [s for s in steps(stand_ins.calls) if s in ("delete", "create")] == ["delete", "create"]


def test_a_log_ends_with_the_exit_code(tmp_path):
  """What a host is told to do, done here."""
  (tmp_path / "jaxzero").mkdir()
  (tmp_path / "jaxzero-env" / "bin").mkdir(parents=True)
  program = tmp_path / "jaxzero-env" / "bin" / "jaxzero"
  program.write_text('#!/bin/sh\necho "$JAXZERO_COORDINATOR: $4"\nexit 3\n')
  program.chmod(0o755)
  start = dry("run", *JOB)[0][-2].removeprefix("--command=")
  out = run(["bash", "-c", f"{start} wait"], {"HOME": str(tmp_path)}, cwd=tmp_path)
  assert out.returncode == 0, out.stderr
  assert (tmp_path / "jaxzero.log").read_text() == "auto: /shared/a run\nexit code 3\n"


def test_without_a_name_or_with_an_unknown_verb_it_says_what_to_do():
  out = run([*TPU, "--dry-run", "create"], {**ENV, "TPU_NAME": ""})
  assert (out.returncode, "TPU_NAME" in out.stderr) == (2, True)
  out = run([*TPU, "--dry-run", "dance"], ENV)
  assert (out.returncode, "dance" in out.stderr) == (2, True)
