"""Many hosts as one: joining them, and the few words they need to act together.

Hosts are joined only where the environment says so, so that a pod that is set up wrongly fails
loudly and a laptop never waits for anybody.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from jaxzero.errors import UserError

COORDINATOR = "JAXZERO_COORDINATOR"
NUM_PROCESSES = "JAXZERO_NUM_PROCESSES"
PROCESS_ID = "JAXZERO_PROCESS_ID"

JOIN_TIMEOUT_S = 300
"""Seconds that processes wait for each other at the start."""

# What jax's coordination service says, and what it means.
_REASONS = {
  "ALREADY_EXISTS": "two processes came with the same JAXZERO_PROCESS_ID",
  "Unexpected task": "there are more processes than JAXZERO_NUM_PROCESSES",
  "DEADLINE_EXCEEDED": "some process never came, or the coordinator is that of an older job",
  "UNAVAILABLE": "the coordinator does not answer: it has ended, or it is that of an older job",
  "Failed to start RPC server": "its port is in use: an older job still runs",
}

_host_names: dict[int, str] = {}


def initialize_hosts() -> None:
  """Joins this process to the others; does nothing where JAXZERO_COORDINATOR is not set.

  JAXZERO_COORDINATOR is `host:port` of process 0, with JAXZERO_NUM_PROCESSES and
  JAXZERO_PROCESS_ID beside it; or `auto`, where jax finds the cluster by itself (TPU pods, SLURM,
  Kubernetes). Must run before anything asks jax for its devices. Calling it again does nothing.

  Raises:
    UserError: only some of the variables are set, one is malformed, or the others never came.
  """
  values = {name: os.environ.get(name, "") for name in (COORDINATOR, NUM_PROCESSES, PROCESS_ID)}
  if not any(values.values()) or jax.distributed.is_initialized():
    return
  try:
    with _fatal_as_sentence(values):
      if values[COORDINATOR] == "auto":
        jax.distributed.initialize(initialization_timeout=JOIN_TIMEOUT_S)
      else:
        coordinator, num_processes, process_id = _parsed(values)
        jax.distributed.initialize(
          coordinator, num_processes, process_id, initialization_timeout=JOIN_TIMEOUT_S
        )
  except (RuntimeError, ValueError) as error:
    raise UserError(_why_not_joined(values, str(error))) from error
  _host_names.update(enumerate(gather_objects(socket.gethostname())))


def is_primary() -> bool:
  """Whether this process writes what is written once (process 0 of all)."""
  return jax.process_index() == 0


def fetch(tree: Any) -> Any:
  """A pytree of global arrays, such as search results, as whole numpy arrays on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def gather_objects(value: Any) -> list[Any]:
  """The JSON values that all processes passed, in the order of their ids, on every process."""
  if jax.process_count() == 1:
    return [value]
  data = np.frombuffer(json.dumps(value).encode(), np.uint8)
  sizes = multihost_utils.process_allgather(np.int32(len(data)))
  padded = np.zeros(int(sizes.max()), np.uint8)
  padded[: len(data)] = data
  rows = multihost_utils.process_allgather(padded)
  return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def jointly(function: Callable[[], Any]) -> list[Any]:
  """What `function` returned (JSON) on every process, in the order of their ids.

  Raises:
    UserError: what one of them raised, on all: nobody waits for a process that has refused.
  """
  value, refusal = None, None
  try:
    value = function()
  except UserError as error:
    if jax.process_count() == 1:
      raise
    refusal = str(error)
  everyone = gather_objects([value, refusal])
  for _, sentence in everyone:
    if sentence is not None:
      raise UserError(sentence)
  return [said for said, _ in everyone]


def by_primary(function: Callable[[], Any]) -> Any:
  """What `function` returned (JSON) on process 0, which alone calls it, on every process.

  Raises:
    UserError: what it raised there, on all.
  """
  return jointly(lambda: function() if is_primary() else None)[0]


def barrier(name: str, timeout_s: int = 300) -> None:
  """Waits until every process is here; returns at once where there is only one.

  Args:
    name: used once in a program's life.
    timeout_s: whole seconds to wait for the slowest.

  Raises:
    UserError: some process did not arrive in time; it is named, with its host.
  """
  if jax.process_count() == 1:
    return
  try:
    # With `processes` given, orbax waits on the coordinator, with a timeout; without, on a
    # collective that waits for ever.
    everyone = set(range(jax.process_count()))
    multihost.sync_global_processes(name, timeout=timeout_s, processes=everyone)
  except RuntimeError as error:
    raise UserError(
      f"{_missing(str(error))} of {jax.process_count()} did not reach {name!r} within "
      f"{timeout_s} s; look for the reason in its log, then start all of them again."
    ) from error


def _why_not_joined(values: dict[str, str], said: str) -> str:
  lines = said.strip().splitlines() or ["no reason given"]
  reason = next((why for word, why in _REASONS.items() if word in said), lines[0])
  who = f"process {values[PROCESS_ID]} of {values[NUM_PROCESSES]}" if values[PROCESS_ID] else "this"
  return (
    f"{who} could not join the others within {JOIN_TIMEOUT_S} s at "
    f"{COORDINATOR}={values[COORDINATOR]}: {reason}; end what is left of older jobs, then start "
    "the same command on every host, with ids from 0."
  )


@contextlib.contextmanager
def _fatal_as_sentence(values: dict[str, str]) -> Iterator[None]:
  """Within, jax's client does not raise where joining fails: it logs a stack trace and aborts. That
  becomes one sentence and exit code 2."""
  sys.stderr.flush()
  terminal = os.dup(2)
  libc = ctypes.CDLL(None)
  libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p

  with tempfile.TemporaryFile() as log:

    def said() -> bytes:
      os.dup2(terminal, 2)
      log.seek(0)
      return log.read()

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def on_abort(_: int) -> None:
      sentence = _why_not_joined(values, said().decode(errors="replace"))
      os.write(2, f"jaxzero: {sentence}\n".encode())
      os._exit(2)

    os.dup2(log.fileno(), 2)
    before = libc.signal(signal.SIGABRT, ctypes.cast(on_abort, ctypes.c_void_p))
    try:
      yield
    finally:
      libc.signal(signal.SIGABRT, before)
      os.write(2, said())
      os.close(terminal)


def _missing(message: str) -> str:
  """Who a barrier's timeout says is missing: "process 3 (host tpu-w-1)"."""
  listed = re.search(r"timed out task names:\n([\d\s]+)", message)
  ids = sorted(int(number) for number in listed[1].split()) if listed else []
  names = [f"process {number} (host {_host_names.get(number, 'unknown')})" for number in ids]
  return " and ".join(names) or "a process"


def _parsed(values: dict[str, str]) -> tuple[str, int, int]:
  missing = [name for name, value in values.items() if not value]
  if missing:
    raise UserError(
      f"{' and '.join(missing)} must be set too: {COORDINATOR} (host:port), {NUM_PROCESSES} and "
      f"{PROCESS_ID} go together, or set {COORDINATOR}=auto alone."
    )
  host, _, port = values[COORDINATOR].rpartition(":")
  if not host or not port.isdecimal() or not 0 < int(port) < 65536:
    raise UserError(
      f"{COORDINATOR}={values[COORDINATOR]!r} is not host:port, such as 10.0.0.2:1234, nor auto."
    )
  for name in (NUM_PROCESSES, PROCESS_ID):
    if not values[name].isdecimal():
      raise UserError(f"{name}={values[name]!r} is not a whole number.")
  num_processes, process_id = int(values[NUM_PROCESSES]), int(values[PROCESS_ID])
  if process_id >= num_processes:
    raise UserError(
      f"{PROCESS_ID}={process_id} must be below {NUM_PROCESSES}={num_processes}: ids start at 0."
    )
  return values[COORDINATOR], num_processes, process_id
