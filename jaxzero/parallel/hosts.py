"""Many hosts as one: joining them, and the few words they need to act together.

Hosts are joined only where the environment says so, so that a pod that is set up wrongly fails
loudly and a laptop never waits for anybody.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from jaxzero.errors import UserError

COORDINATOR = "JAXZERO_COORDINATOR"
NUM_PROCESSES = "JAXZERO_NUM_PROCESSES"
PROCESS_ID = "JAXZERO_PROCESS_ID"


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
    if values[COORDINATOR] == "auto":
      jax.distributed.initialize()
    else:
      coordinator, num_processes, process_id = _parsed(values)
      jax.distributed.initialize(coordinator, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    raise UserError(
      f"the hosts could not be joined with {COORDINATOR}={values[COORDINATOR]!r} "
      f"({str(error).strip().splitlines()[0]}); check that every process runs the same command "
      "and can reach process 0."
    ) from error


def is_primary() -> bool:
  """Whether this process writes what is written once (process 0 of all)."""
  return jax.process_index() == 0


def fetch(tree: Any) -> Any:
  """A pytree of global arrays, such as search results, as whole numpy arrays on every process."""
  if jax.process_count() == 1:
    return jax.device_get(tree)
  return multihost_utils.process_allgather(tree, tiled=True)


def barrier(name: str, timeout_s: int = 300) -> None:
  """Waits until every process is here; returns at once where there is only one.

  Args:
    name: used once in a program's life.
    timeout_s: whole seconds to wait for the slowest.

  Raises:
    UserError: some process did not arrive in time.
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
      f"not all of the {jax.process_count()} processes reached {name!r} within {timeout_s} s; "
      "look for the reason in the log of the one that is missing."
    ) from error


@contextlib.contextmanager
def primary_first(name: str) -> Iterator[None]:
  """Runs the body on process 0, then on all others: they find the files it wrote.

  Args:
    name: used once in a program's life.
  """
  if not is_primary():
    barrier(name)
  yield
  if is_primary():
    barrier(name)


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
