"""How a tree's leaf gets its logits: one decoded position on a KV cache, or everything recomputed.

Both answer the same question for node `sim + 1` of every tree; the search does not know which one
it runs on. `TreeCache` is the fast one; `Recompute` is its oracle.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxzero.models.transformer import Block, Output, PolicyValueTransformer
from jaxzero.search.game import Game, prefix_mask, prefix_slots


class Network(Protocol):
  """Evaluates one new node per tree; `state` is carried through the simulation loop."""

  def initial_state(self) -> Any: ...

  def evaluate(
    self, state: Any, simulation: jax.Array, token: jax.Array, node: Any
  ) -> tuple[Output, Any]:
    """token [B] and the new node's fields -> Output of [B, 1, ...] and the new state."""


class TreeCache:
  """One KV slot per node behind the prefix's slots; a node sees the prefix and its ancestors."""

  def __init__(self, model: PolicyValueTransformer, layers: list[Block], game: Game):
    self.model, self.layers, self.game = model, layers, game
    self.prefix_mask = prefix_mask(game)

  def initial_state(self):
    return self.game.cache

  def evaluate(self, state, simulation, token, node):
    position = self.game.prompt_length + node.length - 1
    spare = self.game.cache[0][0].shape[2] - prefix_slots(self.game) - node.ancestors.shape[1]
    unused = jnp.zeros((token.shape[0], spare), bool)
    mask = jnp.concatenate([self.prefix_mask, node.ancestors, unused], axis=1)
    return self.model.extend(
      self.layers,
      state,
      token[:, None],
      position[:, None],
      jnp.int32(prefix_slots(self.game)) + simulation,
      mask[:, None],
    )


class Recompute:
  """The oracle: prompt and completion of every leaf go through the model from the start."""

  def __init__(self, model: PolicyValueTransformer, game: Game):
    self.model, self.game = model, game

  def initial_state(self):
    return ()

  def evaluate(self, state, simulation, token, node):
    game = self.game
    B, P = game.prompts.shape
    length = P + node.completion.shape[1]
    index = jnp.arange(length) - game.prompt_length[:, None]
    completion = jnp.take_along_axis(
      node.completion, jnp.clip(index, 0, node.completion.shape[1] - 1), axis=1
    )
    prompts = jnp.pad(game.prompts, ((0, 0), (0, node.completion.shape[1])))
    tokens = jnp.where(index >= 0, completion, prompts)
    positions = jnp.broadcast_to(jnp.arange(length), (B, length))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (B, length, length))
    output = self.model(tokens, positions, mask)
    last = (game.prompt_length + node.length - 1)[:, None]
    return Output(
      jnp.take_along_axis(output.logits, last[..., None], axis=1),
      jnp.take_along_axis(output.value_logits, last, axis=1),
    ), state
