"""The launchers: what they would run, and two real processes that train as one."""

from __future__ import annotations

import json
import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.parallel import hosts

ROOT = pathlib.Path(__file__).parents[2]
LOCAL = [sys.executable, str(ROOT / "launch" / "local_multiprocess.py")]
TPU = ["bash", str(ROOT / "launch" / "tpu_vm.sh")]
TPU_ENV = {"TPU_NAME": "zero", "ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-16"}


def run(command, env=None, timeout=60):
  return subprocess.run(
    command,
    env={**os.environ, **(env or {})},
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=timeout,
    stdin=subprocess.DEVNULL,
  )


def test_local_dry_run_names_one_coordinator_and_every_id():
  out = run([*LOCAL, "--processes", "3", "--dry-run", "--", "train", "a config.py", "--run", "r"])
  assert out.returncode == 0, out.stderr
  commands = [shlex.split(line) for line in out.stdout.splitlines()]
  settings = [dict(word.split("=", 1) for word in c if "=" in word) for c in commands]
  assert [s["JAXZERO_PROCESS_ID"] for s in settings] == ["0", "1", "2"]
  assert {s["JAXZERO_NUM_PROCESSES"] for s in settings} == {"3"}
  assert len({s["JAXZERO_COORDINATOR"] for s in settings}) == 1
  assert all(
    c[-6:] == ["-m", "jaxzero.cli", "train", "a config.py", "--run", "r"] for c in commands
  )


def test_one_failing_process_stops_the_others_and_gives_its_code(tmp_path):
  (tmp_path / "half_broken.py").write_text(
    "import os, sys, time\n"
    "if os.environ['JAXZERO_PROCESS_ID'] == '1': sys.exit(7)\n"
    "time.sleep(50)\n"
  )
  out = run([*LOCAL, "--module", "half_broken"], {"PYTHONPATH": str(tmp_path)}, timeout=20)
  assert out.returncode == 7, out.stderr


def test_a_signal_reaches_every_process_and_gives_their_code(tmp_path):
  (tmp_path / "saves_first.py").write_text(
    "import os, signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
    "print('ready', flush=True)\n"
    "time.sleep(50)\n"
  )
  env = {**os.environ, "PYTHONPATH": str(tmp_path)}
  command = [*LOCAL, "--module", "saves_first"]
  with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as launcher:
    lines = {launcher.stdout.readline() for _ in range(2)}
    launcher.terminate()
    assert launcher.wait(20) == 3
  assert lines == {"[0] ready\n", "[1] ready\n"}


def test_two_processes_train_the_losses_of_one(tmp_path):
  """2 processes x 2 devices over gloo against 1 process x 4 devices: the same global batches."""
  results = {}
  for processes in (1, 2):
    path = tmp_path / f"{processes}.json"
    sizes = ["--processes", str(processes), "--devices-per-process", str(4 // processes)]
    module = ["--module", "sharded_steps", "--", "4", str(path)]
    env = {
      "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests" / "launch"))),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # most of the time is compiling
    }
    out = run([*LOCAL, *sizes, *module], env, timeout=120)
    assert out.returncode == 0, out.stdout + out.stderr
    results[processes] = json.loads(path.read_text())
  assert [(r["processes"], r["devices"]) for r in results.values()] == [(1, 4), (2, 4)]
  one, two = (np.array(r["losses"]) for r in results.values())
  np.testing.assert_allclose(two, one, rtol=1e-5)
  assert one[-1] < one[0]


@pytest.mark.parametrize(
  ("settings", "word"),
  [
    (("127.0.0.1:1234", "", ""), "JAXZERO_NUM_PROCESSES"),
    (("", "2", "0"), "JAXZERO_COORDINATOR"),
    (("localhost", "2", "0"), "host:port"),
    (("localhost:99999", "2", "0"), "host:port"),
    (("localhost:1234", "two", "0"), "whole number"),
    (("localhost:1234", "2", "2"), "below"),
  ],
)
def test_half_set_or_malformed_hosts_are_one_sentence(monkeypatch, settings, word):
  for name, value in zip(
    (hosts.COORDINATOR, hosts.NUM_PROCESSES, hosts.PROCESS_ID), settings, strict=True
  ):
    monkeypatch.setenv(name, value)
  with pytest.raises(UserError, match=word):
    hosts.initialize_hosts()


def test_alone_there_is_nobody_to_wait_for(monkeypatch):
  for name in (hosts.COORDINATOR, hosts.NUM_PROCESSES, hosts.PROCESS_ID):
    monkeypatch.delenv(name, raising=False)
  hosts.initialize_hosts()
  hosts.barrier("alone")
  assert hosts.is_primary()


def gcloud_lines(text):
  return [shlex.split(line) for line in text.splitlines() if line.startswith("gcloud ")]


def verbs(commands):
  words = ("create", "describe", "scp", "ssh", "delete")
  return [next(word for word in command if word in words) for command in commands]


def dry(*arguments):
  out = run([*TPU, "--dry-run", *arguments], TPU_ENV)
  assert out.returncode == 0, out.stderr
  return gcloud_lines(out.stdout)


def test_tpu_up_creates_waits_installs_and_runs_on_all_workers():
  commands = dry("up", "train", "configs/smoke.py", "--run", "/shared/a run")
  assert verbs(commands) == ["create", "describe", "scp", "ssh", "ssh"]
  assert all("--zone=us-west4-a" in c for c in commands)
  assert all("--worker=all" in c for c in commands[2:])
  install, launch = (c[-1] for c in commands[3:])
  assert "pip install -e '.[tpu]'" in install
  assert "JAXZERO_COORDINATOR=auto" in launch
  assert "jaxzero train configs/smoke.py --run /shared/a\\ run" in launch


@pytest.mark.parametrize("verb", ["create", "wait", "install", "logs", "restart", "run", "up"])
def test_tpu_deletes_only_when_told_to(verb):
  assert "delete" not in verbs(dry(verb, "train", "configs/smoke.py"))
  assert verbs(dry("delete")) == ["delete"]


@pytest.mark.parametrize(
  ("states", "expected"),
  [
    (["ACTIVE"], ["describe", "ssh"]),
    (
      ["SUSPENDED", "WAITING_FOR_RESOURCES", "ACTIVE"],
      ["describe", "delete", "create", "describe", "describe", "scp", "ssh", "ssh"],
    ),
  ],
)
def test_tpu_restart_replaces_only_a_preempted_slice(tmp_path, states, expected):
  (tmp_path / "states").write_text("".join(f"{state}\n" for state in states))
  stub = tmp_path / "gcloud"
  stub.write_text(
    "#!/usr/bin/env bash\n"
    'if [[ "$*" == *describe* ]]; then\n'
    f'  head -n 1 "{tmp_path}/states"; sed -i 1d "{tmp_path}/states"\n'
    "fi\n"
  )
  stub.chmod(0o755)
  env = {**TPU_ENV, "POLL_S": "0", "TMPDIR": str(tmp_path)}
  env["PATH"] = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
  out = run([*TPU, "restart", "train", "configs/smoke.py"], env)
  assert out.returncode == 0, out.stderr
  assert verbs(gcloud_lines(out.stderr)) == expected


def test_tpu_without_a_name_or_with_an_unknown_verb_says_what_to_do():
  out = run([*TPU, "--dry-run", "create"], {**TPU_ENV, "TPU_NAME": ""})
  assert (out.returncode, "TPU_NAME" in out.stderr) == (2, True)
  out = run([*TPU, "--dry-run", "dance"], TPU_ENV)
  assert (out.returncode, "dance" in out.stderr) == (2, True)
