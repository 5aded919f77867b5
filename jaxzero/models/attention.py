"""The one attention interface of training, prefill and tree decode, and rotary positions."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_MASKED = -1e30


def rope(x: jax.Array, positions: jax.Array, theta: float) -> jax.Array:
  """Rotary position embedding, half-split form (Su et al. 2021).

  Args:
    x: [B, T, N, H].
    positions: [B, T] int32.
    theta: base of the frequencies.
  """
  half = x.shape[-1] // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return turned.astype(x.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """Grouped-query attention under an arbitrary mask (causal, padded, packed or a tree's).

  Args:
    q: [B, T, N, H].
    k, v: [B, K, S, H], the layout of the KV cache.
    mask: [B, T, S] bool, True where a query may look; a row without any True gives an average
      over all positions, never NaN.

  Returns:
    [B, T, N, H] in q's dtype; the softmax is float32.
  """
  B, T, N, H = q.shape
  K = k.shape[1]
  grouped = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
  scores = jnp.einsum("BKXH,BKSH->BKXS", grouped, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(B, K, N // K, T, -1) * H**-0.5
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1)
  weights = weights.astype(q.dtype).reshape(B, K, -1, k.shape[2])
  out = jnp.einsum("BKXS,BKSH->BKXH", weights, v)
  return out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)
