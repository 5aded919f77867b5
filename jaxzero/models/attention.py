"""The one attention interface of training, prefill and tree decode, and rotary positions."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

_MASKED = -1e30


def rotation(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
  """Cosine and sine of RoPE's angles (Su et al. 2021), made once for all layers.

  Args:
    positions: [B, T] int32.
    theta: base of the frequencies.

  Returns:
    Two arrays [B, T, head_dim / 2] float32.
  """
  half = head_dim // 2
  frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
  angles = positions[..., None].astype(jnp.float32) * frequencies
  return jnp.cos(angles), jnp.sin(angles)


def rope(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
  """Rotary position embedding, half-split form, of x [B, T, ..., H]; `turn` is `rotation(...)`."""
  cos, sin = (jnp.expand_dims(t, range(2, x.ndim - 1)) for t in turn)
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1)
  return turned.astype(x.dtype)


def attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """Grouped-query attention under an arbitrary mask (causal, padded, packed or a tree's).

  One token a row takes another form on the CPU; which one is settled when the program is lowered.

  Args:
    q: [B, T, N, H].
    k, v: [B, K, S, H], the layout of the KV cache.
    mask: [B, T, S] bool, True where a query may look; a row without any True gives an average
      over all positions, never NaN.

  Returns:
    [B, T, N, H] in q's dtype; the softmax is float32.
  """
  if q.shape[1] > 1:
    return einsum_attention(q, k, v, mask)
  return jax.lax.platform_dependent(
    q, k, v, mask, cpu=one_token_attention, default=einsum_attention
  )


def einsum_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """`attention` as two batched matrix products: the reference, and what accelerators like."""
  B, T, N, H = q.shape
  K = k.shape[1]
  grouped = q.reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
  scores = jnp.einsum("BKXH,BKSH->BKXS", grouped, k, preferred_element_type=jnp.float32)
  scores = scores.reshape(B, K, N // K, T, -1) * H**-0.5
  weights = jax.nn.softmax(jnp.where(mask[:, None, None], scores, _MASKED), axis=-1)
  weights = weights.astype(q.dtype).reshape(B, K, -1, k.shape[2])
  out = jnp.einsum("BKXS,BKSH->BKXH", weights, v)
  return out.reshape(B, K, N // K, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


def one_token_attention(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
  """`attention` for T = 1 on a CPU, where batched products of a few rows cost more than they do.

  Scores are a matrix times a vector per head, the average a multiply and a sum over slots: both
  stream the cache in the order in which it lies. The softmax is divided out at the end.
  """
  B, _, N, H = q.shape
  K = k.shape[1]
  grouped = q.reshape(B, K, N // K, H)
  product = functools.partial(jnp.einsum, "BKSH,BKH->BKS", k, preferred_element_type=jnp.float32)
  scores = jnp.stack([product(grouped[:, :, g]) for g in range(N // K)], axis=2) * H**-0.5
  scores = jnp.where(mask[:, None], scores, _MASKED)
  weights = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
  out = jnp.sum(weights[..., None] * v[:, :, None].astype(jnp.float32), axis=-2)
  out = out / jnp.sum(weights, axis=-1, keepdims=True)
  return out.reshape(B, 1, N, H).astype(q.dtype)
