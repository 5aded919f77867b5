"""One table from the names of array axes to mesh axes, and the checks that keep it honest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxzero.errors import UserError
from jaxzero.parallel.mesh import batch_shards

Axes = tuple[str | None, ...]

RULES: dict[str, tuple[str, ...]] = {
  "batch": ("data", "fsdp"),
  "embed": ("fsdp",),
  "vocab": (),  # a tokenizer's size need not divide: that of Countdown is 281, a prime
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "ffn": ("tensor",),
  "head_dim": (),
  "layers": (),
}


def spec(axes: Axes, rules: dict[str, tuple[str, ...]] | None = None) -> PartitionSpec:
  """The PartitionSpec of an array whose axes carry these names (None: replicated).

  Raises:
    UserError: a name is not in the table, or two axes of the array claim the same mesh axis.
  """
  rules = RULES if rules is None else rules
  used: dict[str, str] = {}
  entries: list[Any] = []
  for name in axes:
    if name is not None and name not in rules:
      raise UserError(f"axis name {name!r} is not in the sharding rules; known: {sorted(rules)}.")
    mesh_axes = rules[name] if name else ()
    for mesh_axis in mesh_axes:
      if mesh_axis in used:
        raise UserError(
          f"sharding collision: axes {used[mesh_axis]!r} and {name!r} of {axes} both map to mesh "
          f"axis {mesh_axis!r}; an array can use a mesh axis once."
        )
      used[mesh_axis] = str(name)
    entries.append(mesh_axes if len(mesh_axes) > 1 else (mesh_axes[0] if mesh_axes else None))
  return PartitionSpec(*entries)


def only(axes: Sequence[str], partition: PartitionSpec) -> PartitionSpec:
  """What of a parameter's PartitionSpec is over these mesh axes; whole over the others."""
  return PartitionSpec(*(entry if entry in axes else None for entry in partition))


def sharding(mesh: Mesh, axes: Axes, shape: Sequence[int], what: str = "array") -> NamedSharding:
  """The NamedSharding of an array of `shape`; raises UserError where a size does not divide."""
  partition = spec(axes)
  for size, name, entry in zip(shape, axes, partition, strict=True):
    mesh_axes = entry if isinstance(entry, tuple) else (entry,) if entry else ()
    shards = 1
    for mesh_axis in mesh_axes:
      shards *= mesh.shape[mesh_axis]
    if size % shards:
      raise UserError(
        f"{what}: axis {name!r} of size {size} does not divide over {'x'.join(mesh_axes)}={shards} "
        f"devices; use a multiple of {shards} or a smaller mesh axis."
      )
  return NamedSharding(mesh, partition)


def replicated(mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, PartitionSpec())


def shard_batch(mesh: Mesh, batch: Any, what: str = "batch size") -> Any:
  """Puts a pytree of host arrays [B, ...] on the mesh, split over data and fsdp.

  On several processes each passes the same whole batch and keeps its own rows.
  """
  shards = batch_shards(mesh)

  def put(x):
    if x.shape[0] % shards:
      raise UserError(
        f"{what} {x.shape[0]} does not divide over data x fsdp = {shards} devices; "
        f"use a multiple of {shards} or a smaller mesh."
      )
    batch_sharding = NamedSharding(mesh, PartitionSpec(RULES["batch"]))
    return jax.make_array_from_callback(x.shape, batch_sharding, lambda index: x[index])

  return jax.tree.map(put, batch)
