"""The device mesh: axes `data`, `fsdp`, `tensor`, always of type Auto (mctx needs it)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from jaxzero.errors import UserError

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices each axis takes; `data=0` takes what the other two leave."""

  data: int = 0
  fsdp: int = 1
  tensor: int = 1


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Builds the mesh over `devices` (default: all); raises UserError where the sizes do not fit."""
  devices = jax.devices() if devices is None else devices
  if config.fsdp < 1 or config.tensor < 1 or config.data < 0:
    raise UserError(
      f"mesh sizes must be positive, got {config}; use 1 for an axis you do not need."
    )
  rest = config.fsdp * config.tensor
  data = config.data or len(devices) // rest
  if data * rest != len(devices):
    raise UserError(
      f"--mesh.data={config.data} x fsdp={config.fsdp} x tensor={config.tensor} does not use the "
      f"{len(devices)} devices exactly; choose sizes whose product is {len(devices)}."
    )
  shape = (data, config.fsdp, config.tensor)
  return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_shards(mesh: Mesh) -> int:
  """Over how many shards a batch is split: the product of the data and fsdp axes."""
  return math.prod(mesh.shape[axis] for axis in ("data", "fsdp"))
