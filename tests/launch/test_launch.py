"""The local launcher, and two real processes that train as one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
from shells import ROOT, run

from jaxzero.errors import UserError
from jaxzero.parallel import hosts

LOCAL = [sys.executable, str(ROOT / "launch" / "local_multiprocess.py")]


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
