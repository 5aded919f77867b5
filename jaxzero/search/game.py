"""A batch of episodes in progress: completions, the KV cache of their prefixes, where they stand.

Each row advances at its own pace. Position p of a row lives in cache slot p; after the
`prompt + completion` slots come `tree_slots` for a search's nodes and one spare slot, where rows
that do not move write.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxzero.models.cache import KVCache
from jaxzero.models.scored import Model
from jaxzero.models.transformer import Block
from jaxzero.tasks.base import DeviceVerifier


@chex.dataclass(frozen=True)
class Game:
  """B episodes; P prompt slots, C the longest completion, V the vocabulary."""

  prompts: jax.Array  # [B, P] int32, padded on the right
  prompt_length: jax.Array  # [B] int32
  completion: jax.Array  # [B, C] int32
  length: jax.Array  # [B] int32, tokens of the completion so far
  logits: jax.Array  # [B, V] float32, log-probabilities of the next token
  value: jax.Array  # [B] float32, P(right) by the value head
  values: jax.Array  # [B, C] float32, the same after each token of the completion
  judge: jax.Array  # [B, S] int32, the verifier's state
  cache: KVCache


def start(
  model: Model,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  judge: jax.Array,
  max_tokens: int,
  tree_slots: int = 0,
) -> Game:
  """Prefills the prompts [B, P]; costs B*P positions. judge [B, S]: the verifier's first state."""
  chex.assert_rank([prompts, prompt_length], [2, 1])
  B, P = prompts.shape
  slots = P + max_tokens + tree_slots + 1
  positions = jnp.broadcast_to(jnp.arange(P), (B, P))
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((P, P), bool)), (B, P, P))
  cache = model.init_cache(B, P)
  output, cache = model.extend(layers, cache, prompts, positions, jnp.int32(0), mask)
  cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, slots - P), (0, 0))), cache)
  last = (prompt_length - 1)[:, None]
  logits = jnp.take_along_axis(output.logits, last[..., None], axis=1)[:, 0]
  value_logits = jnp.take_along_axis(output.value_logits, last, axis=1)[:, 0]
  return Game(
    prompts=prompts,
    prompt_length=prompt_length,
    completion=jnp.zeros((B, max_tokens), jnp.int32),
    length=jnp.zeros(B, jnp.int32),
    logits=jax.nn.log_softmax(logits),
    value=jax.nn.sigmoid(value_logits),
    values=jnp.zeros((B, max_tokens)),
    judge=judge,
    cache=cache,
  )


def resume(
  model: Model,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  completion: jax.Array,
  length: jax.Array,
  judge: jax.Array,
  verifier: DeviceVerifier,
) -> Game:
  """Games that stand behind the first `length` [B] tokens of `completion` [B, C], as if these had
  been advanced one by one, but with no `values` before these; costs B * (P + C) positions. judge
  [B, S]: the verifier's first state.
  """
  P, C = prompts.shape[1], completion.shape[1]
  index = jnp.arange(P + C) - prompt_length[:, None]
  behind = jnp.take_along_axis(completion, jnp.clip(index, 0, C - 1), axis=1)
  text = jnp.where(index < 0, jnp.pad(prompts, ((0, 0), (0, C))), behind)

  def read(judge: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
    is_read = (i < length)[:, None]
    return jnp.where(is_read, verifier.read(judge, completion[:, i]), judge), None

  judge, _ = jax.lax.scan(read, judge, jnp.arange(C))
  game = start(model, layers, text, prompt_length + length, judge, max_tokens=0)
  return game.replace(
    prompts=prompts,
    prompt_length=prompt_length,
    completion=completion,
    length=length,
    values=jnp.zeros(completion.shape),
  )


def prefix_slots(game: Game) -> int:
  """Slots reserved for prompt and completion: the first tree slot's index."""
  return game.prompts.shape[1] + game.completion.shape[1]


def prefix_mask(game: Game) -> jax.Array:
  """[B, prefix_slots] bool: the slots that hold this row's prompt and completion."""
  used = game.prompt_length + game.length
  return jnp.arange(prefix_slots(game)) < used[:, None]


def append(completion: jax.Array, length: jax.Array, token: jax.Array) -> jax.Array:
  """Writes token (or value) [B] at index length [B] of [B, C] (no write past the end)."""
  at = jnp.arange(completion.shape[1]) == length[:, None]
  return jnp.where(at, token[:, None], completion)


def advance(
  model: Model,
  layers: list[Block],
  game: Game,
  token: jax.Array,
  moving: jax.Array,
  verifier: DeviceVerifier,
) -> Game:
  """Commits token [B] in the rows that are moving [B] bool; the others stay as they are."""
  slots = game.cache[0][0].shape[2]
  position = game.prompt_length + game.length
  slot = jnp.where(moving, position, slots - 1)
  mask = jnp.arange(slots) <= position[:, None]
  output, cache = model.extend(
    layers, game.cache, token[:, None], position[:, None], slot, mask[:, None]
  )
  completion = append(game.completion, game.length, token)
  value = jax.nn.sigmoid(output.value_logits[:, 0])
  values = append(game.values, game.length, value)
  return game.replace(
    completion=jnp.where(moving[:, None], completion, game.completion),
    length=game.length + moving,
    logits=jnp.where(moving[:, None], jax.nn.log_softmax(output.logits[:, 0]), game.logits),
    value=jnp.where(moving, value, game.value),
    values=jnp.where(moving[:, None], values, game.values),
    judge=jnp.where(moving[:, None], verifier.read(game.judge, token), game.judge),
    cache=cache,
  )
