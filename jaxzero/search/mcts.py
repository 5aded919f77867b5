"""Token-level Gumbel MuZero search (Danihelka et al. 2022) on stock mctx.

An action is an index into a node's A candidate tokens, never the vocabulary. mctx hands
`recurrent_fn` the parent's embedding alone; its public `loop_fn` lets the simulation loop carry
more: the network's KV cache and the first verified terminal, through a cell that lives while the
body is traced. Node of simulation i is slot i.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import mctx

from jaxzero.errors import UserError
from jaxzero.search.game import Game, append
from jaxzero.search.networks import Network

Verify = Callable[[jax.Array, jax.Array], jax.Array]
"""(completion [B, C] int32, length [B] int32, ended) -> right [B] bool."""


@dataclasses.dataclass(frozen=True)
class MCTSConfig:
  """One tree search from one position."""

  num_simulations: int = 16
  num_candidates: int = 16
  """A: tokens offered at each node."""
  max_considered: int = 8
  """Candidates that sequential halving starts with at the root."""
  order: str = "gumbel"
  """Which leaf comes next: `gumbel` (sequential halving at the root, Gumbel MuZero's rule below)
  or `best_first` (the largest log-probability of the path plus `depth_bonus` per token: it dives
  before it widens and never repeats itself)."""
  depth_bonus: float = 0.1
  value_scale: float = 0.1
  maxvisit_init: float = 50.0
  rescale_values: bool = False

  def check(self, vocab_size: int | None) -> None:
    """Raises UserError for a search that cannot run; None: whatever the vocabulary."""
    if self.num_candidates < 2 or (vocab_size and self.num_candidates > vocab_size):
      raise UserError(
        f"num_candidates={self.num_candidates} must be at least 2 and at most the vocabulary's "
        f"{vocab_size or 'size'}."
      )
    if not 1 <= self.max_considered <= self.num_candidates:
      raise UserError(
        f"max_considered={self.max_considered} must lie between 1 and "
        f"num_candidates={self.num_candidates}."
      )
    if self.order not in ("gumbel", "best_first"):
      raise UserError(f"order={self.order!r} is unknown; use gumbel or best_first.")
    if not 1 <= self.num_simulations <= 4096:
      raise UserError(f"num_simulations={self.num_simulations} must lie between 1 and 4096.")


@chex.dataclass(frozen=True)
class Node:
  """mctx's embedding of a node; N tree slots, C the longest completion."""

  completion: jax.Array  # [B, C] int32, the path from the prompt
  length: jax.Array  # [B] int32
  ancestors: jax.Array  # [B, N] bool: the tree slots on the path, its own included
  candidates: jax.Array  # [B, A] int32 token ids
  terminal: jax.Array  # [B] bool
  right: jax.Array  # [B] bool: verified right (only where the search may verify)
  value: jax.Array  # [B] float32
  child_scores: jax.Array  # [B, A] float32: path log-probability, candidate included, plus bonuses


@chex.dataclass(frozen=True)
class Plan:
  """mctx's extra data: the root's noise and, for `best_first`, the way to the next leaf."""

  root_gumbel: jax.Array  # [B, A] float32
  next_action: jax.Array  # [B, N + 1] int32: the action to take at each node


@chex.dataclass(frozen=True)
class Found:
  """The first verified terminal of each tree."""

  found: jax.Array  # [B] bool
  completion: jax.Array  # [B, C] int32
  length: jax.Array  # [B] int32


@chex.dataclass(frozen=True)
class SearchOutput:
  """What one search says of each row."""

  token: jax.Array  # [B] int32, the move
  candidates: jax.Array  # [B, A] int32, the root's candidate tokens
  weights: jax.Array  # [B, A + 1] float32, the improved policy; last the rest of the vocabulary
  visit_counts: jax.Array  # [B, A] int32
  root_value: jax.Array  # [B] float32, mean value of the root over its simulations
  found: Found
  tree: mctx.Tree
  cache: Any  # the network's state after the loop


def mixed_value(tree: mctx.Tree) -> jax.Array:
  """v_mix of the root (Danihelka et al. 2022, appendix D), [B] float32.

  The network's value and the visited candidates' Q, weighted by prior and visits: what the search
  believes of actions it never tried.
  """
  visits = tree.children_visits[:, 0]
  q = tree.children_rewards[:, 0] + tree.children_discounts[:, 0] * tree.children_values[:, 0]
  prior = jax.nn.softmax(tree.children_prior_logits[:, 0])
  prior = jnp.where(visits > 0, jnp.maximum(prior, jnp.finfo(prior.dtype).tiny), 0.0)
  visited_q = jnp.sum(prior * q, -1) / jnp.maximum(jnp.sum(prior, -1), jnp.finfo(prior.dtype).tiny)
  total = jnp.sum(visits, -1)
  return (tree.raw_values[:, 0] + total * visited_q) / (total + 1)


def improved_policy(
  candidate_logits: jax.Array, transformed_q: jax.Array, rest_q: jax.Array
) -> jax.Array:
  """Gumbel MuZero's policy target with a bucket for the tokens that were no candidates (eq. 11).

  Args:
    candidate_logits: [B, A] float32 log-probabilities of the candidates over the whole vocabulary.
    transformed_q: [B, A] float32 sigma(completed Q).
    rest_q: [B] float32 sigma(v_mix), for every token that is no candidate.

  Returns:
    [B, A + 1] float32, sums to 1.
  """
  mass = jnp.sum(jnp.exp(candidate_logits), axis=-1)
  rest = jnp.log(jnp.maximum(1.0 - mass, 1e-9)) + rest_q
  logits = jnp.concatenate([candidate_logits + transformed_q, rest[:, None]], axis=-1)
  return jax.nn.softmax(logits, axis=-1)


def search(
  game: Game,
  network: Network,
  config: MCTSConfig,
  gumbel: jax.Array,
  end_id: int,
  verify: Verify | None,
) -> SearchOutput:
  """Searches from where every row of the game stands; pure, to be called inside jit.

  Args:
    gumbel: [B, V] float32 Gumbel noise (zeros: no exploration): it draws the root's candidates
      without replacement and, the same numbers, drives sequential halving.
    verify: the verdict on finished completions, where the search may verify inside; otherwise
      None, and a terminal is worth what the value head says of it.
  """
  B, C = game.completion.shape
  A, N = config.num_candidates, config.num_simulations
  chex.assert_shape(gumbel, game.logits.shape)
  _, candidates = jax.lax.top_k(game.logits + gumbel, A)
  candidate_logits = jnp.take_along_axis(game.logits, candidates, axis=1)
  root_gumbel = jnp.take_along_axis(gumbel, candidates, axis=1)
  best_first = config.order == "best_first"
  nothing = Found(
    found=jnp.zeros(B, bool),
    completion=jnp.zeros((B, C), jnp.int32),
    length=jnp.zeros(B, jnp.int32),
  )
  cell: dict[str, Any] = {}

  def loop_fn(lower, upper, body, tree_state):
    def wrapped(simulation, carry):
      tree_state, cell["network"], cell["found"] = carry
      cell["simulation"] = simulation
      if best_first:
        rng, tree = tree_state
        tree_state = rng, tree.replace(extra_data=_plan(tree))
      tree_state = body(simulation, tree_state)
      return tree_state, cell["network"], cell["found"]

    carry = (tree_state, network.initial_state(), nothing)
    tree_state, cell["network"], cell["found"] = jax.lax.fori_loop(lower, upper, wrapped, carry)
    return tree_state

  def recurrent_fn(_, rng, action, parent: Node):
    del rng
    token = jnp.take_along_axis(parent.candidates, action[:, None], axis=1)[:, 0]
    child = parent.replace(
      completion=append(parent.completion, parent.length, token),
      length=jnp.minimum(parent.length + 1, C),
      ancestors=parent.ancestors | (jnp.arange(N) == cell["simulation"]),
    )
    output, cell["network"] = network.evaluate(cell["network"], cell["simulation"], token, child)
    logits, child_candidates = jax.lax.top_k(output.logits[:, 0], A)
    logits -= jax.nn.logsumexp(output.logits[:, 0], axis=-1, keepdims=True)
    value = jax.nn.sigmoid(output.value_logits[:, 0])
    ended = ~parent.terminal & (token == end_id)
    terminal = parent.terminal | ended | (child.length >= C)
    if verify is None:
      right = jnp.zeros(B, bool)
      reward = jnp.zeros(B)
      discount = jnp.ones(B)
      value = jnp.where(parent.terminal, parent.value, value)
    else:
      right = jax.lax.cond(
        jnp.any(ended),
        lambda: ended & verify(child.completion, child.length),
        lambda: jnp.zeros(B, bool),
      )
      reward = right.astype(jnp.float32)
      discount = 1.0 - terminal
      value = jnp.where(terminal, 0.0, value)
      cell["found"] = _keep_first(cell["found"], right, child)
    score = jnp.take_along_axis(parent.child_scores, action[:, None], axis=1)
    child = child.replace(
      child_scores=score + logits + config.depth_bonus,
      candidates=child_candidates,
      terminal=terminal,
      right=right,
      value=value,
    )
    out = mctx.RecurrentFnOutput(reward=reward, discount=discount, prior_logits=logits, value=value)
    return out, child

  root = mctx.RootFnOutput(
    prior_logits=candidate_logits,
    value=game.value,
    embedding=Node(
      completion=game.completion,
      length=game.length,
      ancestors=jnp.zeros((B, N), bool),
      candidates=candidates,
      terminal=jnp.zeros(B, bool),
      right=jnp.zeros(B, bool),
      value=game.value,
      child_scores=candidate_logits + root_gumbel + config.depth_bonus,
    ),
  )
  qtransform = functools.partial(
    mctx.qtransform_completed_by_mix_value,
    value_scale=config.value_scale,
    maxvisit_init=config.maxvisit_init,
    rescale_values=config.rescale_values,
  )
  if best_first:
    root_selection = interior_selection = _follow_plan
  else:
    root_selection = functools.partial(
      mctx.gumbel_muzero_root_action_selection,
      num_simulations=N,
      max_num_considered_actions=config.max_considered,
      qtransform=qtransform,
    )
    interior_selection = functools.partial(
      mctx.gumbel_muzero_interior_action_selection, qtransform=qtransform
    )
  tree = mctx.search(
    params=None,
    rng_key=jax.random.key(0),  # Gumbel search draws nothing after the root's noise
    root=root,
    recurrent_fn=recurrent_fn,
    root_action_selection_fn=root_selection,
    interior_action_selection_fn=interior_selection,
    num_simulations=N,
    extra_data=Plan(root_gumbel=root_gumbel, next_action=jnp.zeros((B, N + 1), jnp.int32)),
    loop_fn=loop_fn,
  )
  completed_q = jax.vmap(qtransform, in_axes=(0, None))(tree, tree.ROOT_INDEX)
  visits = tree.children_visits[:, 0]
  most = 1 if best_first else jnp.max(visits, axis=-1, keepdims=True)
  score = jnp.where(visits >= most, root_gumbel + candidate_logits + completed_q, -jnp.inf)
  action = jnp.argmax(score, axis=-1)
  rest_q = _transform(mixed_value(tree), tree, config)
  return SearchOutput(
    token=jnp.take_along_axis(candidates, action[:, None], axis=1)[:, 0],
    candidates=candidates,
    weights=improved_policy(candidate_logits, completed_q, rest_q),
    visit_counts=visits,
    root_value=tree.node_values[:, 0],
    found=cell["found"],
    tree=tree,
    cache=cell["network"],
  )


def _transform(q: jax.Array, tree: mctx.Tree, config: MCTSConfig) -> jax.Array:
  """sigma(q) of the root as mctx's completed-Q transform defines it; q [B]."""
  visits = tree.children_visits[:, 0]
  if config.rescale_values:
    children = (
      tree.children_rewards[:, 0] + tree.children_discounts[:, 0] * tree.children_values[:, 0]
    )
    completed = jnp.where(visits > 0, children, mixed_value(tree)[:, None])
    low, high = jnp.min(completed, -1), jnp.max(completed, -1)
    q = (q - low) / jnp.maximum(high - low, 1e-8)
  return (config.maxvisit_init + jnp.max(visits, -1)) * config.value_scale * q


def _follow_plan(rng: jax.Array, tree: mctx.Tree, node: jax.Array, depth: Any = None) -> jax.Array:
  """mctx's action selection at an unbatched node."""
  del rng, depth
  return tree.extra_data.next_action[node]


def _plan(tree: mctx.Tree) -> Plan:
  """The way from the root to the best unvisited candidate of any node."""
  node = tree.embeddings
  B, num_nodes, A = tree.children_index.shape
  exists = (tree.node_visits > 0) & ~node.terminal
  open_ = exists[..., None] & (tree.children_index == tree.UNVISITED)
  best = jnp.argmax(jnp.where(open_, node.child_scores, -jnp.inf).reshape(B, -1), axis=-1)
  leaf, action = best // A, best % A
  rows = jnp.arange(B)
  # Slot i holds node i + 1; each node on the path tells its parent which action leads there.
  on_path = node.ancestors[rows, leaf]
  parents = jnp.where(on_path, tree.parents[:, 1:], num_nodes)
  next_action = jnp.zeros((B, num_nodes), jnp.int32)
  next_action = next_action.at[rows[:, None], parents].set(
    tree.action_from_parent[:, 1:], mode="drop"
  )
  next_action = next_action.at[rows, leaf].set(action)
  return Plan(root_gumbel=tree.extra_data.root_gumbel, next_action=next_action)


def _keep_first(found: Found, right: jax.Array, child: Node) -> Found:
  new = right & ~found.found
  return Found(
    found=found.found | new,
    completion=jnp.where(new[:, None], child.completion, found.completion),
    length=jnp.where(new, child.length, found.length),
  )
