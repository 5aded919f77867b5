"""Completions sampled from where one stands: what a prefix is worth to the policy, found by trying
(Monte-Carlo). A prefix is prefilled once, whatever the number of its samples."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxzero.models.scored import Model
from jaxzero.models.transformer import Block
from jaxzero.search.game import resume
from jaxzero.search.play import decode
from jaxzero.tasks.base import DeviceVerifier


@chex.dataclass(frozen=True)
class Rollouts:
  """K samples of B prefixes; C the longest completion."""

  completion: jax.Array  # [B, K, C] int32, the prefix included
  length: jax.Array  # [B, K] int32
  right: jax.Array  # [B, K] bool, the verifier's word
  alive: jax.Array  # [B, K] int32: tokens read before the verifier knows a sample to be lost
  positions: jax.Array  # [B] int32, put through the model for a row, idle ones too


def roll_out(
  model: Model,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  completion: jax.Array,
  length: jax.Array,
  judge: jax.Array,
  keys: jax.Array,
  count: int,
  temperature: jax.Array,
  verify_inside: jax.Array,
  end_id: int,
  verifier: DeviceVerifier,
) -> Rollouts:
  """Samples `count` completions that go on from the first `length` [B] tokens of each.

  Args:
    completion: [B, C] int32.
    judge: [B, S] int32, the verifier's first state of each problem.
    keys: [B], consumed; sample i of a row folds i in.
    temperature: scalar, of the policy that is sampled.
    verify_inside: scalar bool, whether a sample ends where the verifier knows that it is lost.
  """
  prefix = resume(model, layers, prompts, prompt_length, completion, length, judge, verifier)
  B, C = completion.shape
  ended = jnp.any((completion == end_id) & (jnp.arange(C) < length[:, None]), axis=1)
  over = (
    ended | (verifier.lost(prefix.judge) & verify_inside) | (length == C) | (prompt_length == 0)
  )
  of_samples = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
  sample_keys = jax.vmap(lambda key: of_samples(key, jnp.arange(count)))(keys).reshape(-1)
  game, moving = jax.tree.map(lambda x: jnp.repeat(x, count, axis=0), (prefix, ~over))
  game, _, steps = decode(
    model, layers, game, moving, sample_keys, temperature, verify_inside, end_id, verifier
  )
  first = jnp.repeat(judge, count, axis=0)
  alive = jnp.minimum(alive_for(first, game.completion, verifier), game.length)
  return Rollouts(
    completion=game.completion.reshape(B, count, C),
    length=game.length.reshape(B, count),
    right=verifier.right(game.judge).reshape(B, count),
    alive=alive.reshape(B, count),
    positions=jnp.broadcast_to(prompts.shape[1] + C + count * steps, (B,)),
  )


def alive_for(judge: jax.Array, completion: jax.Array, verifier: DeviceVerifier) -> jax.Array:
  """[B] int32, how many tokens of completion [B, C] are read before it is known to be lost."""

  def read(judge: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
    judge = verifier.read(judge, token)
    return judge, ~verifier.lost(judge)

  _, alive = jax.lax.scan(read, judge, completion.T)
  return jnp.sum(alive, axis=0)
