"""The mesh uses every device exactly once, or says in numbers why it cannot."""

import jax
import pytest
from jax.sharding import AxisType

from jaxzero.errors import UserError
from jaxzero.parallel.mesh import AXES, MeshConfig, batch_shards, make_mesh


def test_data_takes_what_fsdp_and_tensor_leave():
  mesh = make_mesh(MeshConfig(fsdp=2, tensor=2))
  assert mesh.axis_names == AXES
  assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
  assert set(mesh.devices.flat) == set(jax.devices())


def test_every_axis_is_auto_because_mctx_fails_on_explicit_ones(mesh1, mesh8):
  for mesh in (mesh1, mesh8):
    assert mesh.axis_types == (AxisType.Auto,) * 3


@pytest.mark.parametrize(
  "config", [MeshConfig(), MeshConfig(data=4, fsdp=2), MeshConfig(1, 4, 2), MeshConfig(2, 2, 2)]
)
def test_batches_are_split_over_data_times_fsdp(config):
  assert batch_shards(make_mesh(config)) == 8 // config.tensor


@pytest.mark.parametrize(
  "config", [MeshConfig(data=3), MeshConfig(fsdp=3), MeshConfig(data=2), MeshConfig(tensor=16)]
)
def test_sizes_that_do_not_use_the_devices_are_named(config):
  with pytest.raises(UserError, match=r"data=\d+ x fsdp=\d+ x tensor=\d+ .*8 devices"):
    make_mesh(config)


@pytest.mark.parametrize("config", [MeshConfig(fsdp=0), MeshConfig(tensor=-1), MeshConfig(data=-8)])
def test_sizes_must_be_positive(config):
  with pytest.raises(UserError, match="positive"):
    make_mesh(config)
