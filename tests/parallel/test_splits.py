"""Eight devices, in every split into data x fsdp x tensor: one result, and the planned talk."""

import functools
import math

import jax
import numpy as np
import pytest
from batches import VOCAB, mixed_batch

from jaxzero.learn.losses import LossConfig
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import init_params
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch

SPLITS = [
  (data, fsdp, 8 // data // fsdp)
  for data in (8, 4, 2, 1)
  for fsdp in (8, 4, 2, 1)
  if 8 % (data * fsdp) == 0
]
MODEL = ModelConfig(
  num_layers=2,
  embed_dim=32,
  num_heads=16,
  num_kv_heads=8,
  head_dim=4,
  ffn_dim=64,
  qk_norm=True,
  scan_layers=True,
)
QUICKLY = {"xla_backend_optimization_level": 0}  # compiled in half the time, by the same plan


def name(split):
  return "x".join(map(str, split))


def mesh_of(split):
  return make_mesh(MeshConfig(*split), jax.devices()[: math.prod(split)])


def random_params(vocab_size):
  """Host arrays, with a value head that is not zero."""
  params = jax.device_get(jax.jit(lambda: init_params(MODEL, vocab_size, jax.random.key(0)))())
  params["value"] = np.random.default_rng(0).normal(size=MODEL.embed_dim).astype(np.float32)
  return params


@pytest.fixture(scope="module")
def step_of():
  """Of a split: the compiled train step, and what it gives: gradients and metrics.

  With nothing clipped, Adam's first moment after one step is a tenth of the gradient.
  """
  params, batch = random_params(VOCAB), mixed_batch(rows=16)

  @functools.cache
  def step(split):
    mesh = mesh_of(split)
    optimizer = OptimizerConfig(max_grad_norm=1e9)
    trainer = Trainer(MODEL, VOCAB, optimizer, LossConfig(), mesh, steps=10)
    state = trainer.fresh_optimizer(jax.device_put(params, trainer.shardings.params))
    placed = shard_batch(mesh, batch)
    compiled = trainer.train_step.lower(state, placed).compile(compiler_options=QUICKLY)
    state, metrics = compiled(state, placed)
    return compiled, jax.device_get((state.optimizer[1][0].mu, metrics))

  return step


@pytest.mark.parametrize("split", SPLITS, ids=name)
def test_losses_and_gradients_are_those_of_one_device(step_of, split):
  (one, metrics1), (many, metrics) = step_of((1, 1, 1))[1], step_of(split)[1]
  for key, value in metrics1.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)
  for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
    assert np.linalg.norm(x) > 0, path
    assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x), path
