"""Real processes on this machine: whose rows are whose, who is missing, and stopping together."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[2]


def start(processes, devices, *arguments):
  command = [
    sys.executable,
    str(ROOT / "launch" / "local_multiprocess.py"),
    *("--processes", str(processes), "--devices-per-process", str(devices)),
    *("--module", "tests.parallel.many_hosts", "--", *arguments),
  ]
  return subprocess.Popen(
    command,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def told(lines):
  return [json.loads(line.split(" ", 1)[1]) for line in lines if line[1:5].endswith("] {")]


def run(*arguments):
  with start(*arguments) as launcher:
    output, _ = launcher.communicate(timeout=120)
  return output, told(output.splitlines())


def test_every_row_is_put_taken_shared_and_gathered_by_exactly_one_part():
  output, rows = run(2, 4, "rows")
  assert len(rows) == 10, output
  whole = np.arange(16 * 3).reshape(16, 3)
  for mesh in ("data", "fsdp", "inside", "across", "all"):
    parts = [row for row in rows if row["mesh"] == mesh]
    assert all(row["round_trip"] and row["doubled"] and row["shape"] == [16, 3] for row in parts)
    leaders = sorted((row for row in parts if row["leader"]), key=lambda row: row["part"])
    assert [row["part"] for row in leaders] == list(range(parts[0]["parts"]))
    assert sorted(n for row in leaders for n in row["rows"]) == list(range(16))
    assert [n for row in leaders for n in row["share"]] == list(range(7))
    for row in parts:
      for first, things in row["gathered"].items():
        assert things == whole[: int(first)].tolist()
      assert row["total"] == {"big": 7 + len(leaders) * (1 << 60)}, "exact, also beyond float64"
  assert {row["parts"] for row in rows if row["mesh"] == "across"} == {1}
  assert {row["parts"] for row in rows if row["mesh"] != "across"} == {2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_all_at_the_same_point(number):
  with start(2, 1, "stop") as launcher:
    lines = [launcher.stdout.readline()]
    while not told(lines[-1:]):
      lines.append(launcher.stdout.readline())
    children = subprocess.run(
      ["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[1]), number)
    output, _ = launcher.communicate(timeout=60)
  stops = [row for row in told(output.splitlines()) if "stopped" in row]
  assert len(stops) == 2, output
  assert stops[0]["stopped"] == stops[1]["stopped"] < 200
  assert all(row["again"] for row in stops), "once told, always told"


def test_what_one_process_refuses_all_refuse_in_its_words():
  output, rows = run(3, 1, "refuse")
  full = [row["full"] for row in rows if "full" in row]
  assert full == ["the disk of the third is full; make room."] * 3, output
  told_last = [(row["all"], row["first"]) for row in rows if "all" in row]
  assert len(told_last) == 3 and all(last == told_last[0] for last in told_last)
  assert told_last[0][0] == [0, 1, 2]


def test_a_barrier_that_times_out_names_who_is_missing():
  output, rows = run(3, 1, "late")
  errors = [row["error"] for row in rows]
  assert len(errors) == 2, output
  for error in errors:
    assert error.startswith("process 2 (host ") and "'all here' within 2 s" in error


@pytest.mark.parametrize(
  ("how", "word"),
  [("twice", "same JAXZERO_PROCESS_ID"), ("missing", "never came"), ("too many", "more processes")],
)
def test_processes_that_cannot_join_say_why_in_one_sentence(how, word):
  output, _ = run(3, 1, "join", how)
  said = [line for line in output.splitlines() if "could not join" in line]
  assert said and all(word in line and "] jaxzero: " in line for line in said), output
  assert "stack trace" not in output and "Traceback" not in output
