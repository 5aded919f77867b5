"""What must be the same, or fit together, before a run may begin: commands, configs, devices."""

from __future__ import annotations

from typing import Any

from jaxzero.errors import UserError
from jaxzero.parallel.hosts import gather_objects
from jaxzero.recipes.experiment import Experiment


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
  """Where two JSON values differ, each as "name: x there, y here"."""
  if isinstance(a, dict) and isinstance(b, dict):
    found = []
    for key in sorted(set(a) | set(b)):
      found += differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    return found
  return [] if a == b else [f"{prefix}: {a} there, {b} here"]


def must_agree(mine: dict[str, Any]) -> None:
  """Raises UserError where the processes were not started with the same command."""
  everyone = gather_objects(mine)
  for process, other in enumerate(everyone):
    different = differences(everyone[0], other)
    if different:
      raise UserError(
        f"process {process} was given another command than process 0 ({different[0]}); start the "
        "same command on all of them."
      )


def check_batches(experiment: Experiment, shards: int) -> None:
  """Raises UserError for batches that do not divide over so many shards."""
  sizes = {
    "supervised.batch_size": experiment.supervised.batch_size,
    "improve.batch_size / micro_batches": (
      experiment.improve.batch_size // experiment.improve.micro_batches
    ),
  }
  for name, size in sizes.items():
    if size % shards:
      raise UserError(
        f"{name}={size} does not divide over data x fsdp = {shards} devices; use a multiple of "
        f"{shards} or a smaller mesh."
      )
