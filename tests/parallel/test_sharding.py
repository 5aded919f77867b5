"""The rules table: what it refuses, and that arrays land where it says."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxzero.errors import UserError
from jaxzero.models.transformer import abstract_params, init_params, param_shardings, param_targets
from jaxzero.parallel.sharding import RULES, shard_batch, sharding, spec

VOCAB = 64


def test_specs_follow_the_table():
  assert spec(("batch", None)) == PartitionSpec(("data", "fsdp"), None)
  assert spec(("layers", "embed", "heads", "head_dim")) == PartitionSpec(
    None, "fsdp", "tensor", None
  )
  assert spec(()) == PartitionSpec()


def test_an_unknown_axis_name_is_refused():
  with pytest.raises(UserError, match=r"'depth'.*known: .*'batch'"):
    spec(("depth",))


def test_two_axes_on_one_mesh_axis_collide():
  with pytest.raises(UserError, match=r"'heads' and 'ffn'.*'tensor'"):
    spec(("heads", "ffn"))
  with pytest.raises(UserError, match=r"collision.*'fsdp'"):
    spec(("batch", "embed"))
  rules = {**RULES, "ffn": ("data",)}
  assert spec(("heads", "ffn"), rules) == PartitionSpec("tensor", "data")


def test_sizes_that_do_not_divide_are_named_with_their_numbers(mesh8, mesh1):
  with pytest.raises(UserError, match=r"weights: axis 'ffn' of size 281 .*tensor=2.*multiple of 2"):
    sharding(mesh8, ("ffn", "embed"), (281, 32), "weights")
  with pytest.raises(UserError, match=r"size 6 .*dataxfsdp=4"):
    sharding(mesh8, ("batch",), (6,))
  sharding(mesh1, ("ffn", "embed"), (281, 33))


def test_parameters_are_born_sharded_by_the_table(tiny_model, mesh8):
  shardings = param_shardings(tiny_model, VOCAB, mesh8)
  born = jax.jit(lambda key: init_params(tiny_model, VOCAB, key), out_shardings=shardings)
  params = born(jax.random.key(0))
  assert jax.tree.map(lambda x: x.sharding, params) == shardings
  assert params["blocks"]["q"].sharding.spec == PartitionSpec(None, "fsdp", "tensor", None)
  embed = params["embed"]
  assert {shard.data.shape for shard in embed.addressable_shards} == {(VOCAB, 16)}
  plain = init_params(tiny_model, VOCAB, jax.random.key(0))
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
  targets = param_targets(tiny_model, VOCAB, mesh8)
  assert jax.tree.map(lambda x: x.sharding, targets) == shardings
  assert jax.tree.map(lambda x: x.shape, targets) == jax.tree.map(lambda x: x.shape, params)
  assert jax.tree.structure(abstract_params(tiny_model, VOCAB)) == jax.tree.structure(params)


def test_a_batch_is_split_in_order_and_never_changed(mesh8):
  batch = {"tokens": np.arange(24).reshape(8, 3), "weight": np.linspace(0, 1, 8, dtype=np.float32)}
  placed = shard_batch(mesh8, batch)
  for name, x in placed.items():
    np.testing.assert_array_equal(x, batch[name])
    assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}


def test_a_batch_that_does_not_divide_is_named(mesh8):
  with pytest.raises(UserError, match=r"batch size 6 .*4 devices"):
    shard_batch(mesh8, np.zeros((6, 2)))
