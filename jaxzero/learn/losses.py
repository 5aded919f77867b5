"""Losses as sums: dividing by the batch's total weight once keeps micro-batches exact."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from jaxzero.learn.batch import Batch
from jaxzero.models.transformer import Output


@dataclasses.dataclass(frozen=True)
class LossConfig:
  value_weight: float = 0.5
  policy_weight: float = 1.0
  """0: next tokens are not learned, and their logits never computed."""
  kl_weight: float = 0.0
  """Weight of KL(policy || reference) on the completion's positions; 0 needs no reference."""
  clip: float = 0.2
  """Advantages: a probability that has grown or shrunk by more than this share since the sample was
  drawn is not pushed on (PPO: Schulman et al. 2017)."""


def hard_cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
  """Sum over positions of weight * -log p(next token); logits [B, T, V] float32."""
  return -jnp.sum(_next_log_p(logits, batch) * batch.hard_weight[:, :-1])


def policy_gradient(logits: jax.Array, batch: Batch, clip: float) -> jax.Array:
  """Sum over positions of the clipped surrogate (Schulman et al. 2017, eq. 7; Shao et al. 2024, eq.
  3), to be minimised. Every token counts the same: dividing by each sample's length favours long
  wrong samples (Liu et al. 2025, sec. 3.1)."""
  advantage = batch.advantage[:, :-1]
  log_ratio = _next_log_p(logits, batch) - batch.old_log_p[:, :-1]
  ratio = jnp.exp(jnp.where(advantage == 0, 0.0, log_ratio))
  clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
  return -jnp.sum(jnp.minimum(ratio * advantage, clipped * advantage))


def _next_log_p(logits: jax.Array, batch: Batch) -> jax.Array:
  """log p(tokens[t + 1]) at t, [B, T - 1]; asked for twice, computed once."""
  target = jnp.roll(batch.tokens, -1, axis=1)[..., None]
  return (jnp.take_along_axis(logits, target, axis=-1) - _normalizer(logits))[:, :-1, 0]


def soft_cross_entropy(logits: jax.Array, batch: Batch) -> jax.Array:
  """Sum of weight * cross-entropy to the improved policy with its rest bucket.

  The student's rest is the mass it gives to every token that was no candidate. Where it is tiny,
  one minus the candidates' mass would be all rounding, so it is summed over the vocabulary.
  """
  there = batch.candidates >= 0
  of_candidates = jnp.take_along_axis(logits, jnp.maximum(batch.candidates, 0), axis=-1)
  # One comparison a candidate in one pass over the vocabulary, not an array [B, T, A, V].
  token = jnp.arange(logits.shape[-1])
  columns = jnp.split(batch.candidates, batch.candidates.shape[-1], axis=-1)
  is_candidate = functools.reduce(jnp.logical_or, [token == column for column in columns])
  rest = jax.nn.logsumexp(jnp.where(is_candidate, -1e9, logits), axis=-1, keepdims=True)
  log_buckets = jnp.concatenate([of_candidates, rest], axis=-1) - _normalizer(logits)
  counts = jnp.concatenate([there, jnp.ones_like(there[..., :1])], axis=-1)
  losses = jnp.sum(batch.soft_target * jnp.where(counts, log_buckets, 0.0), axis=-1)
  return -jnp.sum(batch.soft_weight * losses)


def _normalizer(logits: jax.Array) -> jax.Array:
  """[B, T, 1]; both cross-entropies ask for it, the compiler computes it once."""
  return jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def value_cross_entropy(value_logits: jax.Array, batch: Batch) -> jax.Array:
  """Sum of weight * binary cross-entropy of P(right) to its target, an outcome or a share."""
  target = batch.value_target
  losses = -target * jax.nn.log_sigmoid(value_logits) - (1 - target) * jax.nn.log_sigmoid(
    -value_logits
  )
  return jnp.sum(batch.value_weight * losses)


def kl_to_reference(logits: jax.Array, reference: jax.Array, batch: Batch) -> jax.Array:
  """Sum of KL(policy || reference) over positions that carry any policy or value target."""
  log_p, log_r = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
  kl = jnp.sum(jnp.exp(log_p) * (log_p - log_r), axis=-1)
  return jnp.sum(kl * _targeted(batch))


def _targeted(batch: Batch) -> jax.Array:
  total = batch.hard_weight + batch.soft_weight + batch.value_weight + abs(batch.advantage)
  return (total > 0).astype(jnp.float32)


def weights(batch: Batch) -> dict[str, jax.Array]:
  """What each loss is divided by, from the whole batch (at least 1e-6)."""
  totals = {
    "hard": jnp.sum(batch.hard_weight[:, :-1]),
    "soft": jnp.sum(batch.soft_weight),
    "advantage": jnp.sum(batch.advantage != 0, dtype=jnp.float32),
    "value": jnp.sum(batch.value_weight),
    "kl": jnp.sum(_targeted(batch)),
  }
  return {name: jnp.maximum(total, 1e-6) for name, total in totals.items()}


def total_loss(
  output: Output,
  reference: jax.Array | None,
  batch: Batch,
  divisors: dict[str, jax.Array],
  config: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The loss of a (micro-)batch, its parts already divided by the whole batch's weights.

  Hard targets, soft targets and advantages are averaged together: a position counts the same
  whichever it has.
  """
  parts = {"value_loss": value_cross_entropy(output.value_logits, batch) / divisors["value"]}
  loss = config.value_weight * parts["value_loss"]
  if config.policy_weight:
    policy_divisor = divisors["hard"] + divisors["soft"] + divisors["advantage"]
    policy_loss = (
      hard_cross_entropy(output.logits, batch)
      + soft_cross_entropy(output.logits, batch)
      + policy_gradient(output.logits, batch, config.clip)
    )
    parts["policy_loss"] = policy_loss / policy_divisor
    loss = config.policy_weight * parts["policy_loss"] + loss
  if config.kl_weight:
    assert reference is not None
    parts["kl"] = kl_to_reference(output.logits, reference, batch) / divisors["kl"]
    loss = loss + config.kl_weight * parts["kl"]
  return loss, {"loss": loss, **parts}
