"""One forward: new nodes get their token, their logits and value, and the rules' word on them."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxzero.search import tree as tree_lib
from jaxzero.search.networks import Network
from jaxzero.search.rules import Rules
from jaxzero.search.tree import Nodes, Tree, at


@chex.dataclass(frozen=True)
class Weights:
  """What may change from call to call without compiling anew; float32 scalars."""

  temperature: jax.Array  # of the policy that the search follows
  depth_bonus: jax.Array
  regret_weight: jax.Array
  value_weight: jax.Array
  failure_weight: jax.Array
  rollout_weight: jax.Array


def policy(logits: jax.Array, temperature: jax.Array) -> jax.Array:
  """Log-probabilities of the policy that the search follows; logits [..., V]."""
  return jax.nn.log_softmax(logits / temperature)


def expand(
  tree: Tree,
  state: Any,
  node: jax.Array,
  parent: jax.Array,
  action: jax.Array,
  present: jax.Array,
  network: Network,
  rules: Rules,
  room: jax.Array,
  weights: Weights,
) -> tuple[Tree, Any]:
  """Evaluates W new nodes a tree in one forward; they are written, but not linked.

  Args:
    state: the network's.
    node: [B, W] int32, where the new nodes go.
    parent, action: [B, W] int32, where they hang.
    present: [B, W] bool, which of them are real.
    room: [B] int32, tokens that fit below the root.
  """
  A = tree.candidates.shape[-1]
  tree = tree_lib.sprout(tree, node, parent, action, present)
  output, state = network.evaluate(state, tree, node, present)
  # Top-k before the softmax: only A of the V log-probabilities are kept.
  logits, candidates = jax.lax.top_k(output.logits / weights.temperature, A)
  total = jax.nn.logsumexp(output.logits / weights.temperature, axis=-1, keepdims=True)
  left = room[:, None] - at(tree.depth, parent)
  ruling = rules.play(at(tree.judge, parent), at(tree.token, node), left)
  value = jax.nn.sigmoid(output.value_logits)
  nodes = Nodes(
    judge=ruling.judge,
    terminal=ruling.terminal,
    right=ruling.right,
    reward=ruling.reward,
    discount=ruling.discount,
    raw_value=jnp.where(ruling.discount == 0, 0.0, value),
    candidates=candidates,
    prior_logits=logits - total,
  )
  return tree_lib.fill(tree, node, nodes, present), state
