"""Which rows of a sharded batch are on this host: each makes, reads and writes only its own."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxzero.errors import UserError
from jaxzero.parallel.hosts import gather_objects
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.sharding import RULES


class HostRows:
  """How the rows of batches lie on the hosts of a mesh.

  A *part* is what one host holds: of a batch of B rows, B / parts of them. Hosts that share the
  same rows (a tensor axis across them) are one part, led by the first of them.

  Raises:
    UserError: hosts hold overlapping but different rows.
  """

  def __init__(self, mesh: Mesh):
    self.mesh, self.shards = mesh, batch_shards(mesh)
    grid = mesh.devices.reshape(self.shards, -1)
    held: dict[int, list[int]] = {}
    for shard, devices in enumerate(grid):
      for process in {device.process_index for device in devices}:
        held.setdefault(process, []).append(shard)
    parts = sorted({tuple(blocks) for blocks in held.values()})
    if sum(map(len, parts)) != self.shards:
      raise UserError(
        f"the {len(held)} hosts share batch rows unevenly under mesh {dict(mesh.shape)}; choose a "
        "tensor axis that divides a host's devices, or is a multiple of them."
      )
    own = tuple(held[jax.process_index()])
    leaders = [min(p for p, blocks in held.items() if tuple(blocks) == part) for part in parts]
    self.leaders, self.parts, self.part = leaders, len(parts), parts.index(own)
    self.is_leader = leaders[self.part] == jax.process_index()
    self._blocks = np.array(own)
    self._sharding = NamedSharding(mesh, PartitionSpec(RULES["batch"]))

  def of(self, size: int) -> np.ndarray:
    """The numbers of this host's rows in a batch of `size` rows, ascending: [size / parts]."""
    return np.arange(size).reshape(self.shards, -1)[self._blocks].reshape(-1)

  def share(self, count: int) -> range:
    """This part's contiguous range of `count` things, in the order of the parts."""
    bounds = self._bounds(count)
    return range(bounds[self.part], bounds[self.part + 1])

  def _bounds(self, count: int) -> list[int]:
    """Where each part's share of `count` things begins, and where the last ends: [parts + 1]."""
    return [part * count // self.parts for part in range(self.parts + 1)]

  def put(self, local: Any) -> Any:
    """A pytree of this host's rows [B / parts, ...] as global arrays [B, ...]."""

    def place(x: Any) -> jax.Array:
      block = len(x) // len(self._blocks)
      offsets = {int(shard) * block: i * block for i, shard in enumerate(self._blocks)}

      def rows(index: Any) -> Any:
        begin = offsets[index[0].start or 0]
        return x[begin : begin + block]

      shape = (block * self.shards, *x.shape[1:])
      return jax.make_array_from_callback(shape, self._sharding, rows)

    return jax.tree.map(place, local)

  def take(self, tree: Any) -> Any:
    """This host's rows of a pytree of global arrays, as numpy arrays [B / parts, ...]."""

    def rows(x: jax.Array) -> np.ndarray:
      blocks = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
      return np.concatenate([np.asarray(blocks[begin]) for begin in sorted(blocks)])

    if jax.process_count() == 1:
      return jax.device_get(tree)
    return jax.tree.map(rows, tree)

  def gather(self, own: dict[int, Any], like: Any, first: int, count: int) -> list[Any]:
    """What all parts have of things 0..first-1 out of `count`, in order, on every host.

    Args:
      own: by number, this part's pytrees of arrays; at least those of `share(count)` below `first`.
      like: a pytree of their shapes and dtypes.
    """
    if self.parts == 1 or not first:
      return [own[number] for number in range(first)]
    bounds = self._bounds(count)
    owner = np.searchsorted(bounds, np.arange(first), side="right") - 1
    slots = np.arange(first) - np.asarray(bounds)[owner]
    mine = [own[number] for number in range(first) if owner[number] == self.part]
    mine += [jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), like)] * (
      int(slots.max()) + 1 - len(mine)
    )
    everyone = multihost_utils.process_allgather(jax.tree.map(lambda *x: np.stack(x), *mine))
    places = [(self.leaders[part], slot) for part, slot in zip(owner, slots, strict=True)]
    return [jax.tree.map(lambda x, at=place: x[at], everyone) for place in places]

  def total(self, local: Any) -> Any:
    """The sum over the parts of a host's numbers, on every host; exact for Python integers.

    Args:
      local: a number, or a dict of numbers.
    """
    everyone = gather_objects(local)
    own = [everyone[leader] for leader in self.leaders]
    if isinstance(local, dict):
      return {name: sum(numbers[name] for numbers in own) for name in local}
    return sum(own)
