"""One tree search by values from where every row of a game stands, and what it advises."""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxzero.search import reuse, rounds, values
from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.expand import Weights, policy
from jaxzero.search.game import Game
from jaxzero.search.networks import Network
from jaxzero.search.rules import Rules
from jaxzero.search.select import qtransform, root_visits
from jaxzero.search.stock import grow_stock
from jaxzero.search.tree import Tree, at
from jaxzero.search.values import Search


@chex.dataclass(frozen=True)
class Found:
  """A verified completion of each row, if any."""

  found: jax.Array  # [B] bool
  completion: jax.Array  # [B, C] int32
  length: jax.Array  # [B] int32


@chex.dataclass(frozen=True)
class SearchOutput:
  """What one search says of each row."""

  token: jax.Array  # [B] int32, the move
  candidates: jax.Array  # [B, A] int32, the root's candidate tokens
  weights: jax.Array  # [B, A + 1] float32, the improved policy; last the rest of the vocabulary
  visit_counts: jax.Array  # [B, A] int32, inherited ones included
  root_value: jax.Array  # [B] float32, mean value of the root over its visits
  found: Found
  tree: Tree
  state: Any  # the network's, after the search
  nodes: jax.Array  # [B] int32: new nodes, forward tokens
  forwards: jax.Array  # scalar int32: calls of the network
  positions: jax.Array  # scalar int32: positions a row that those calls computed


def most_nodes(config: TreeConfig, may_be_invalid: bool = False) -> int:
  """The most forward tokens that one search may take: all the nodes it may evaluate."""
  return config.capacity if config.parallel == "none" else rounds.slots(config, may_be_invalid)


def most_inherited(config: TreeConfig) -> int:
  """The most nodes that a search may take over; they come first in the tree."""
  return config.capacity if config.reuse else 0


def tree_slots(config: TreeConfig, may_be_invalid: bool = False) -> int:
  """KV slots that a search needs beside the prefix's: one for every node, inherited or new."""
  return most_inherited(config) + most_nodes(config, may_be_invalid)


def search(
  game: Game,
  network: Network,
  config: TreeConfig,
  gumbel: jax.Array,
  rules: Rules,
  judge: jax.Array,
  weights: Weights,
  delimiters: tuple[int, ...] = (),
  stop_when_found: bool = False,
  invalid: jax.Array | None = None,
  past: reuse.Past | None = None,
) -> SearchOutput:
  """Searches by values from where every row of the game stands; pure, to be called inside jit.

  Args:
    gumbel: [B, V] float32 Gumbel noise (zeros: no exploration): it draws the root's candidates
      without replacement and, the same numbers, drives sequential halving.
    judge: [B, S] int32, the verifier's state where the rows stand.
    delimiters: tokens that end a run.
    stop_when_found: a row's search ends with its first terminal that is right.
    invalid: [B, V] bool, tokens that may not be played at the root.
    past: with `config.reuse`, the last search's trees and where the rows stand in them.
  """
  logits = policy(game.logits, weights.temperature)
  chex.assert_equal_shape([gumbel, logits])
  noisy = logits + gumbel
  noisy = noisy if invalid is None else jnp.where(invalid, -jnp.inf, noisy)
  _, candidates = jax.lax.top_k(noisy, config.num_candidates)

  def pick(x: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, candidates, axis=1)

  tree = tree_lib.plant(
    tree_slots(config, invalid is not None) + 1,
    game.completion.shape[1],
    candidates,
    pick(logits),
    game.value,
    judge,
  )
  state, inherited = network.initial_state(), most_inherited(config)
  if inherited and past is not None:
    tree, source = reuse.subtree(past, tree, inherited)
    state = network.inherit(state, source)
  setting = Search(
    config=config,
    network=network,
    rules=rules,
    gumbel=pick(gumbel),
    invalid=jnp.zeros(candidates.shape, bool) if invalid is None else pick(invalid),
    inherited=root_visits(tree),
    room=game.completion.shape[1] - game.length,
    weights=weights,
    delimiters=delimiters,
    stop_when_found=stop_when_found,
  )
  if config.backend == "mctx":
    tree, state = grow_stock(setting, tree, state)
    found = jnp.argmax(tree.right, axis=1).astype(jnp.int32)
    nodes = jnp.full(game.length.shape, config.num_simulations, jnp.int32)
    forwards = positions = jnp.int32(config.num_simulations)
  else:
    growth = values.begin(tree, state, inherited)
    grow = {"none": values.grow, "exact": rounds.grow_exact, "lazy": rounds.grow_lazy}
    growth = grow[config.parallel](setting, growth)
    tree, state, nodes, found = growth.tree, growth.state, growth.nodes, growth.found
    forwards, positions = growth.forwards, growth.positions
  return _advice(game, setting, tree, state, found, nodes, forwards, positions)


def _advice(
  game, setting: Search, tree: Tree, state, found, nodes, forwards, positions
) -> SearchOutput:
  config, gumbel = setting.config, setting.gumbel
  candidates, logits = tree.candidates[:, 0], tree.prior_logits[:, 0]
  visits = root_visits(tree)
  if config.order == "puct":
    score = jnp.log(visits) + gumbel
    share = visits / jnp.maximum(jnp.sum(visits, axis=1, keepdims=True), 1)
    mass = jnp.sum(jnp.exp(logits), axis=1, keepdims=True)
    improved = jnp.concatenate([share * mass, 1.0 - mass], axis=1)
  else:
    improved, completed_q = improved_policies(tree, jnp.zeros_like(nodes), config)
    new = visits - setting.inherited
    most = jnp.max(new, axis=-1, keepdims=True)
    score = jnp.where(new >= most, gumbel + logits + completed_q, -jnp.inf)
  action = jnp.argmax(jnp.where(setting.invalid, -jnp.inf, score), axis=-1)
  return SearchOutput(
    token=jnp.take_along_axis(candidates, action[:, None], axis=1)[:, 0],
    candidates=candidates,
    weights=improved,
    visit_counts=visits,
    root_value=tree.value[:, 0],
    found=find(game, tree, found),
    tree=tree,
    state=state,
    nodes=nodes,
    forwards=forwards,
    positions=positions,
  )


def find(game: Game, tree: Tree, node: jax.Array) -> Found:
  """The completions that end at node [B]; 0: none."""
  C = game.completion.shape[1]
  depth, tokens = at(tree.depth, node), at(tree.token, at(tree.path, node))
  index = jnp.arange(C) - game.length[:, None]
  below = jnp.take_along_axis(tokens, jnp.clip(index, 0, tokens.shape[1] - 1), axis=1)
  completion = jnp.where(index < 0, game.completion, below)
  length = game.length + depth
  inside = jnp.arange(C) < length[:, None]
  return Found(found=node > 0, completion=jnp.where(inside, completion, 0), length=length)


def improved_policies(
  tree: Tree, node: jax.Array, config: TreeConfig
) -> tuple[jax.Array, jax.Array]:
  """Gumbel MuZero's policy targets at node [B] or [B, W] (Danihelka et al. 2022, eq. 11).

  Returns:
    [..., A + 1] float32 that sum to 1, the last for all tokens that are no candidates; and
    sigma(completed Q) of the candidates, [..., A].
  """
  seen = tree_lib.view(tree, node)
  completed_q = jax.vmap(qtransform(config), in_axes=(0, None))(seen, 0)
  logits = seen.children_prior_logits[:, 0]
  rest_q = _transform(mixed_value(seen), seen, config)
  weights = improved_policy(logits, completed_q, rest_q)
  shape = (*node.shape, -1)
  return weights.reshape(shape), completed_q.reshape(shape)


def mixed_value(tree) -> jax.Array:
  """v_mix of one-node trees (Danihelka et al. 2022, appendix D), [B] float32.

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
  """The improved policy with a bucket for the tokens that were no candidates (eq. 11).

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


def _transform(q: jax.Array, tree, config: TreeConfig) -> jax.Array:
  """sigma(q) of one-node trees as mctx's completed-Q transform defines it; q [B]."""
  visits = tree.children_visits[:, 0]
  if config.rescale_values:
    children = (
      tree.children_rewards[:, 0] + tree.children_discounts[:, 0] * tree.children_values[:, 0]
    )
    completed = jnp.where(visits > 0, children, mixed_value(tree)[:, None])
    low, high = jnp.min(completed, -1), jnp.max(completed, -1)
    q = (q - low) / jnp.maximum(high - low, 1e-8)
  return (config.maxvisit_init + jnp.max(visits, -1)) * config.value_scale * q
