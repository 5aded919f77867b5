"""Search by backed-up values, one leaf of every tree at a time: Gumbel MuZero (Danihelka et al.
2022) or PUCT, as stock mctx searches, without what mctx spends below terminals.

A simulation walks down to an edge that leads nowhere, puts its token through the network, and backs
up. With runs or rollouts it goes on along the policy: every token is a node of the tree.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.expand import Weights, expand
from jaxzero.search.networks import Network
from jaxzero.search.rules import Rules
from jaxzero.search.select import descend, select_root
from jaxzero.search.tree import Tree, at


@dataclasses.dataclass(frozen=True)
class Search:
  """What stays the same during one search of B trees."""

  config: TreeConfig
  network: Network
  rules: Rules
  gumbel: jax.Array  # [B, A] float32, the root's noise
  invalid: jax.Array  # [B, A] bool, forbidden at the root
  inherited: jax.Array  # [B, A] int32, visits of the root's children before this search
  room: jax.Array  # [B] int32, tokens that fit below the root
  weights: Weights
  delimiters: tuple[int, ...] = ()
  """Tokens that end a run."""
  stop_when_found: bool = False

  def expand(self, tree, state, node, parent, action, present) -> tuple[Tree, Any]:
    return expand(
      tree,
      state,
      node,
      parent,
      action,
      present,
      self.network,
      self.rules,
      self.room,
      self.weights,
    )

  def backup(self, tree: Tree, leaf: jax.Array, present: jax.Array, returns=None) -> Tree:
    return tree_lib.backup(tree, leaf, present, returns, self.rules.discounted)


@chex.dataclass(frozen=True)
class Growth:
  """B trees growing."""

  tree: Tree
  state: Any  # the network's
  size: jax.Array  # [B] int32: where the next node goes
  nodes: jax.Array  # [B] int32: nodes that the network evaluated for this row
  simulations: jax.Array  # [B] int32: those finished
  cursor: jax.Array  # [B] int32: the last node of a simulation that goes on
  start: jax.Array  # [B] int32: its first new node
  running: jax.Array  # [B] bool: it goes on
  found: jax.Array  # [B] int32: the first terminal that is right, 0: none yet
  forwards: jax.Array  # scalar int32: calls of the network
  positions: jax.Array  # scalar int32: nodes a row that those calls evaluated, used or not


def begin(tree: Tree, state: Any, reserved: int = 0) -> Growth:
  """Nothing has grown yet; the first `reserved` slots below the root are for inherited nodes."""
  zeros = jnp.zeros(tree.parent.shape[0], jnp.int32)
  return Growth(
    tree=tree,
    state=state,
    size=zeros + 1 + reserved,
    nodes=zeros,
    simulations=zeros,
    cursor=zeros,
    start=zeros,
    running=zeros > 0,
    found=zeros,
    forwards=jnp.int32(0),
    positions=jnp.int32(0),
  )


def is_open(search: Search, growth: Growth) -> jax.Array:
  """[B] bool: the rows whose search goes on."""
  unfinished = growth.simulations < search.config.num_simulations
  fits = growth.size < growth.tree.parent.shape[1]
  wanted = growth.found == 0 if search.stop_when_found else True
  return unfinished & fits & wanted


def grow(search: Search, growth: Growth) -> Growth:
  """Runs every row's simulations to the end."""
  return jax.lax.while_loop(
    lambda g: jnp.any(is_open(search, g)), lambda g: _step(search, g), growth
  )


def _step(search: Search, growth: Growth) -> Growth:
  """One forward: each row's running simulation goes on, or its next one begins."""
  growth, parent, action = _settle(search, growth)
  tree, running = growth.tree, growth.running
  last = tree.parent.shape[1] - 1
  size = jnp.minimum(growth.size, last)  # a full tree's row is not present
  node = size[:, None]
  parent = jnp.where(running, growth.cursor, parent)[:, None]
  action = jnp.where(running, 0, action)[:, None]
  present = is_open(search, growth)[:, None]
  tree, state = search.expand(tree, growth.state, node, parent, action, present)
  tree = tree_lib.link(tree, node, present)
  start = jnp.where(running, growth.start, size)
  alive = present[:, 0] & ~at(tree.terminal, size) & (size < last)
  forced = alive & _in_run(search, tree, size, start)
  if search.config.max_run > 1:
    forced_there = tree_lib.write(tree.forced, node, forced[:, None], forced[:, None])
    tree = tree.replace(forced=forced_there)
  goes_on = alive if search.config.rollout else forced
  ended = present[:, 0] & ~goes_on
  returns = _mixed_return(search, tree, size, start)[:, None]
  new_found = (growth.found == 0) & at(tree.right, size) & present[:, 0]
  return growth.replace(
    tree=search.backup(tree, node, ended[:, None], returns),
    state=state,
    size=growth.size + present[:, 0],
    nodes=growth.nodes + present[:, 0],
    simulations=growth.simulations + ended,
    cursor=size,
    start=start,
    running=goes_on,
    found=jnp.where(new_found, size, growth.found),
    forwards=growth.forwards + 1,
    positions=growth.positions + 1,
  )


def _settle(search: Search, growth: Growth) -> tuple[Growth, jax.Array, jax.Array]:
  """Picks each row's next edge [B]; simulations that end where one ended before cost no forward."""
  max_depth = growth.tree.path.shape[-1]

  def wants(growth):
    return is_open(search, growth) & ~growth.running

  def again(carry):
    growth, _, _, child, fresh = carry
    visited = wants(growth) & (child >= 0) & ~fresh
    tree = search.backup(growth.tree, jnp.maximum(child, 0)[:, None], visited[:, None])
    growth = growth.replace(tree=tree, simulations=growth.simulations + visited)
    action = select_root(tree, search.config, search.gumbel, search.invalid, search.inherited)
    edge = descend(tree, search.config, action[:, None], max_depth)
    return growth, *(x[:, 0] for x in edge), jnp.bool_(False)

  def unsettled(carry):
    growth, _, _, child, fresh = carry
    return fresh | jnp.any(wants(growth) & (child >= 0))

  nowhere = jnp.zeros_like(growth.size)
  carry = (growth, nowhere, nowhere, nowhere - 1, jnp.bool_(True))
  growth, parent, action, _, _ = jax.lax.while_loop(unsettled, again, carry)
  return growth, parent, action


def _in_run(search: Search, tree: Tree, node: jax.Array, start: jax.Array) -> jax.Array:
  """[B] bool: the run that began at `start` and has just made `node` makes another."""
  config = search.config
  if config.max_run == 1:
    return jnp.zeros_like(node, bool)
  forced = jnp.max(at(tree.prior_logits, node), axis=-1) >= jnp.log(config.fork_threshold)
  for delimiter in search.delimiters:
    forced &= at(tree.token, node) != delimiter
  return forced & (node - start + 1 < config.max_run)


def _mixed_return(search: Search, tree: Tree, leaf: jax.Array, start: jax.Array) -> jax.Array:
  """[B] float32: the simulation's outcome, mixed with the value of its first new node."""
  outcome = at(tree.reward, leaf) + at(tree.discount, leaf) * at(tree.raw_value, leaf)
  if not search.config.rollout:
    return outcome
  weight = search.weights.rollout_weight
  # A first node that is itself the end has no estimate to mix in.
  guess = jnp.where(start == leaf, outcome, at(tree.raw_value, start))
  return weight * outcome + (1.0 - weight) * guess
