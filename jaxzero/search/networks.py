"""How new nodes get their logits: decoded on the tree's KV cache, or everything recomputed.

Both answer the same question for W new nodes of every tree; the search does not know which one it
runs on. `TreeCache` is the fast one; `Recompute` is its oracle.
"""

from __future__ import annotations

from typing import Any, Protocol

import jax
import jax.numpy as jnp

from jaxzero.models.cache import read
from jaxzero.models.scored import Model
from jaxzero.models.transformer import Block, Output, PolicyValueTransformer
from jaxzero.search.game import Game, prefix_mask, prefix_slots
from jaxzero.search.tree import Tree, at


class Network(Protocol):
  """Evaluates new nodes; `state` is carried through the search's loops."""

  def initial_state(self) -> Any: ...

  def evaluate(
    self, state: Any, tree: Tree, node: jax.Array, present: jax.Array
  ) -> tuple[Output, Any]:
    """Nodes [B, W] whose tokens and paths are written, where present [B, W] -> Output [B, W, ...].

    Several nodes a tree (W > 1) are neighbours, and the same ones in every tree.
    """
    ...

  def inherit(self, state: Any, source: jax.Array) -> Any:
    """The state once nodes 1..R are those that were source [B, R] int32 (`reuse.subtree`)."""
    ...


class TreeCache:
  """One KV slot per node behind the prefix's slots; a node sees the prefix and its ancestors.

  One node a row looks at the slots of its own path, in the order of their positions, so its cost
  does not grow with the tree. Several nodes a row share one read of the whole cache under a mask.
  """

  def __init__(self, model: Model, layers: list[Block], game: Game):
    self.model, self.layers, self.game = model, layers, game

  def initial_state(self):
    return self.game.cache

  def evaluate(self, state, tree, node, present):
    used = (self.game.prompt_length + self.game.length)[:, None]
    depth, path = at(tree.depth, node), at(tree.path, node)
    position = used + depth - 1
    slot = prefix_slots(self.game) + node - 1
    if node.shape[1] == 1:
      view, mask = self._path_view(used, position, path[:, 0])
      spare = state[0][0].shape[2] - 1
      slot = jnp.where(present, slot, spare)[:, 0]
    else:
      view, mask = None, self._tree_mask(depth, path, tree.token.shape[1])
      slot = slot[0, 0]
    token = at(tree.token, node)
    return self.model.extend(self.layers, state, token, position, slot, mask, view)

  def inherit(self, state, source):
    first = prefix_slots(self.game)

    def moved(cache: jax.Array) -> jax.Array:
      return jax.lax.dynamic_update_slice(cache, read(cache, first + source - 1), (0, 0, first, 0))

    return jax.tree.map(moved, state)

  def _path_view(self, used, position, path):
    """Slots [B, P + C] by position, and which of them the node sees [B, 1, P + C]."""
    slots = prefix_slots(self.game)
    index = jnp.arange(slots)
    below = jnp.take_along_axis(path, jnp.clip(index - used, 0, path.shape[1] - 1), axis=1)
    return jnp.where(index < used, index, slots + below - 1), (index <= position)[:, None]

  def _tree_mask(self, depth, path, num_nodes):
    """[B, W, slots] bool: the prefix and the path."""
    B, W, D = path.shape
    on_path = jnp.arange(D) < depth[..., None]
    rows, lanes = jnp.arange(B)[:, None, None], jnp.arange(W)[:, None]
    slot = jnp.where(on_path, path - 1, num_nodes)
    nodes = jnp.zeros((B, W, num_nodes - 1), bool).at[rows, lanes, slot].set(True, mode="drop")
    prefix = prefix_mask(self.game)
    spare = self.game.cache[0][0].shape[2] - prefix.shape[1] - num_nodes + 1
    prefix = jnp.broadcast_to(prefix[:, None], (B, W, prefix.shape[1]))
    return jnp.concatenate([prefix, nodes, jnp.zeros((B, W, spare), bool)], axis=2)


class Recompute:
  """The oracle: prompt and completion of every new node go through the model from the start."""

  def __init__(self, model: PolicyValueTransformer, game: Game):
    self.model, self.game = model, game

  def initial_state(self):
    return ()

  def evaluate(self, state, tree, node, present):
    game = self.game
    (B, width), slots = node.shape, prefix_slots(game)
    used = game.prompt_length + game.length
    depth, path = at(tree.depth, node), at(tree.path, node)
    prefix = jnp.pad(game.prompts, ((0, 0), (0, game.completion.shape[1])))
    index = jnp.arange(slots)
    played = jnp.take_along_axis(
      game.completion,
      jnp.clip(index - game.prompt_length[:, None], 0, game.completion.shape[1] - 1),
      axis=1,
    )
    prefix = jnp.where(index < game.prompt_length[:, None], prefix, played)
    on_path = at(tree.token, path)
    step = jnp.clip(index - used[:, None], 0, path.shape[2] - 1)[:, None]
    below = jnp.take_along_axis(on_path, jnp.broadcast_to(step, (B, width, slots)), axis=2)
    tokens = jnp.where(index < used[:, None, None], prefix[:, None], below).reshape(-1, slots)
    positions = jnp.broadcast_to(index, tokens.shape)
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((slots, slots), bool)), (len(tokens), slots, slots))
    output = self.model(tokens, positions, mask)
    last = (used[:, None] + depth - 1).reshape(-1, 1)
    logits = jnp.take_along_axis(output.logits, last[..., None], axis=1)
    values = jnp.take_along_axis(output.value_logits, last, axis=1)
    return Output(logits.reshape(B, width, -1), values.reshape(B, width)), state

  def inherit(self, state, source):
    return state
