"""The KV cache: one (k, v) pair of arrays a layer, a slot for every position or tree node."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxzero.models.config import ModelConfig

KVCache = tuple[tuple[jax.Array, jax.Array], ...]  # per layer: k and v, [B, K, S, H]


def init_cache(config: ModelConfig, batch: int, slots: int) -> KVCache:
  """An empty cache of `slots` positions for each of `batch` sequences, in the compute dtype."""
  shape = (batch, config.num_kv_heads, slots, config.head_dim)
  zeros = lambda: jnp.zeros(shape, config.dtype)  # noqa: E731
  return tuple((zeros(), zeros()) for _ in range(config.num_layers))


def write(cache: jax.Array, new: jax.Array, slot: jax.Array) -> jax.Array:
  """Writes keys or values into the cache.

  Args:
    cache: [B, K, S, H].
    new: [B, T, K, H].
    slot: scalar int32: all rows write at slots slot..slot+T-1 (an update in place); or [B] int32
      with T = 1: every row writes at its own slot.
  """
  new = new.transpose(0, 2, 1, 3).astype(cache.dtype)
  if slot.ndim == 0:
    return jax.lax.dynamic_update_slice(cache, new, (0, 0, slot, 0))
  rows = jnp.arange(cache.shape[0])
  return cache.at[rows, :, slot].set(new[:, :, 0])


def read(cache: jax.Array, view: jax.Array) -> jax.Array:
  """The slots view [B, R] int32 of a cache [B, K, S, H], [B, K, R, H]."""
  return jax.vmap(lambda row, slots: row.at[:, slots].get(mode="promise_in_bounds"))(cache, view)
