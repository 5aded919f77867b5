"""Several hosts on one machine: N local processes with fake CPU devices, joined over gloo.

  python launch/local_multiprocess.py --processes 2 --devices-per-process 4 \\
    -- train configs/smoke.py --run runs/two-hosts

What follows `--` goes to `python -m jaxzero.cli` (or to the module that `--module` names) in every
process. Exits with the first failing process's code, after stopping the others.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time

GRACE_S = 30
"""Seconds that a process gets to save before it is killed."""


def child_env(coordinator: str, processes: int, process_id: int, devices: int) -> dict[str, str]:
  """What each process finds in its environment, beside what is there already."""
  return {
    "JAXZERO_COORDINATOR": coordinator,
    "JAXZERO_NUM_PROCESSES": str(processes),
    "JAXZERO_PROCESS_ID": str(process_id),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def copy_lines(child: subprocess.Popen[str], process_id: int) -> None:
  """Prints a process's output line by line, behind its number."""
  assert child.stdout is not None
  for line in child.stdout:
    print(f"[{process_id}] {line}", end="", flush=True)


def wait_for_all(children: list[subprocess.Popen[str]]) -> int:
  """0 once all have ended well, else the first bad exit code; the others are stopped."""
  while True:
    failed = first_failure(children)
    if failed is not None:
      stop(children)
      return failed
    if all(child.returncode == 0 for child in children):
      return 0
    time.sleep(0.1)


def first_failure(children: list[subprocess.Popen[str]]) -> int | None:
  """The first exit code that is not 0, as a shell would tell it; None where there is none."""
  codes = [child.poll() for child in children]
  failed = next((code for code in codes if code), None)
  return 128 - failed if failed is not None and failed < 0 else failed


def stop(children: list[subprocess.Popen[str]]) -> None:
  deadline = time.monotonic() + GRACE_S
  for child in children:
    if child.poll() is None:
      child.terminate()
  for child in children:
    try:
      child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
      child.kill()
      child.wait()


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices-per-process", type=int, default=4)
  parser.add_argument("--module", default="jaxzero.cli", help="what `python -m` runs")
  parser.add_argument("--dry-run", action="store_true", help="print the commands, run nothing")
  parser.add_argument("arguments", nargs="*", help="after `--`: the module's own arguments")
  options = parser.parse_args()
  if options.processes < 1 or options.devices_per_process < 1:
    parser.error("--processes and --devices-per-process must be at least 1.")

  command = [sys.executable, "-m", options.module, *options.arguments]
  coordinator = f"127.0.0.1:{free_port()}"
  environments = [
    child_env(coordinator, options.processes, process_id, options.devices_per_process)
    for process_id in range(options.processes)
  ]
  if options.dry_run:
    for environment in environments:
      settings = [f"{name}={value}" for name, value in environment.items()]
      print(shlex.join(["env", *settings, *command]))
    return 0

  children = [
    subprocess.Popen(
      command,
      env={**os.environ, **environment},
      stdin=subprocess.DEVNULL,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      start_new_session=True,  # a Ctrl-C reaches the processes once, through us
    )
    for environment in environments
  ]
  readers = [
    threading.Thread(target=copy_lines, args=(child, process_id), daemon=True)
    for process_id, child in enumerate(children)
  ]
  for reader in readers:
    reader.start()
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    code = wait_for_all(children)
  except KeyboardInterrupt:
    stop(children)
    code = first_failure(children) or 0
  for reader in readers:
    reader.join(timeout=5)
  return code


if __name__ == "__main__":
  sys.exit(main())
