"""Every split of eight devices into data x fsdp x tensor, and a tiny model that fits each."""

import math

import jax
import numpy as np

from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import init_params
from jaxzero.parallel.mesh import MeshConfig, make_mesh

SPLITS = [(8 // rest, rest // tensor, tensor) for rest in (1, 2, 4, 8) for tensor in (1, 2, 4, 8)
          if rest % tensor == 0]  # fmt: skip
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


def name(split):
  return "x".join(map(str, split))


def mesh_of(split):
  return make_mesh(MeshConfig(*split), jax.devices()[: math.prod(split)])


def random_params(config, vocab_size):
  """Host arrays, with a value head that is not zero."""
  params = jax.device_get(jax.jit(lambda: init_params(config, vocab_size, jax.random.key(0)))())
  params["value"] = np.random.default_rng(0).normal(size=config.embed_dim).astype(np.float32)
  return params
