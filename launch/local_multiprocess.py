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


def environments(processes: int, devices: int) -> list[dict[str, str]]:
  """What each process finds in its environment, beside what is there already."""
  with socket.socket() as listener:  # free now, and with luck still when process 0 binds it
    listener.bind(("127.0.0.1", 0))
    coordinator = f"127.0.0.1:{listener.getsockname()[1]}"
  shared = {
    "JAXZERO_COORDINATOR": coordinator,
    "JAXZERO_NUM_PROCESSES": str(processes),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": str(devices),
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
  }
  return [{**shared, "JAXZERO_PROCESS_ID": str(index)} for index in range(processes)]


def start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
  return subprocess.Popen(
    command,
    env={**os.environ, **environment},
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    start_new_session=True,  # a Ctrl-C reaches the processes once, through us
  )


def copy_lines(child: subprocess.Popen[str], process_id: int) -> None:
  """Prints a process's output line by line, behind its number."""
  assert child.stdout is not None
  for line in child.stdout:
    print(f"[{process_id}] {line}", end="", flush=True)


def first_failure(children: list[subprocess.Popen[str]]) -> int:
  """The first exit code that is not 0, as a shell would tell it; 0 where there is none."""
  failed = next((code for child in children if (code := child.poll())), 0)
  return 128 - failed if failed < 0 else failed


def stop(children: list[subprocess.Popen[str]]) -> None:
  deadline = time.monotonic() + GRACE_S
  for child in children:
    child.terminate()  # nothing, where it has ended
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
  settings = environments(options.processes, options.devices_per_process)
  print("It has begun once '[0] jaxzero: N processes, M devices' is here.", file=sys.stderr)
  if options.dry_run:
    for environment in settings:
      print(
        shlex.join(["env", *(f"{name}={value}" for name, value in environment.items()), *command])
      )
    return 0

  children: list[subprocess.Popen[str]] = []
  readers: list[threading.Thread] = []
  failed = 0
  signal.signal(signal.SIGTERM, signal.default_int_handler)
  try:
    for process_id, environment in enumerate(settings):
      children.append(start(command, environment))
      # Daemons: what a process left behind may hold its output open for ever.
      readers.append(
        threading.Thread(target=copy_lines, args=(children[-1], process_id), daemon=True)
      )
      readers[-1].start()
    while not failed and any(child.poll() is None for child in children):
      failed = first_failure(children)
      time.sleep(0.1)
    if failed:
      print(f"A process ended with exit code {failed}; stopping the others.", file=sys.stderr)
  except KeyboardInterrupt:
    pass  # they are stopped below, and their codes tell how that went
  stop(children)
  for reader in readers:
    reader.join(timeout=5)
  return failed or first_failure(children)


if __name__ == "__main__":
  sys.exit(main())
