"""A pass of sequential halving in one forward: the same search as one leaf at a time.

In a pass every considered action is visited once, and their subtrees are disjoint, so their leaves
are known together. Only which half survives a halving depends on the order within the pass; there
the root's selection is replayed, and leaves are committed in its order (Danihelka et al. 2022 for
the schedule).

`exact` evaluates every action that may be asked for; `lazy` those that look best, and asks for
another forward where the replay wants one it has not.
"""

from __future__ import annotations

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.select import descend, root_q, root_visits, select_root
from jaxzero.search.tree import at
from jaxzero.search.values import Growth, Search, is_open


@functools.cache
def considered_visits(max_considered: int, num_simulations: int) -> tuple[int, ...]:
  """Visits that an action must have to be considered, for each simulation (mctx's schedule)."""
  if max_considered <= 1:
    return tuple(range(num_simulations))
  rounds = math.ceil(math.log2(max_considered))
  sequence: list[int] = []
  visits, considered = [0] * max_considered, max_considered
  while len(sequence) < num_simulations:
    for _ in range(max(1, num_simulations // (rounds * considered))):
      sequence += visits[:considered]
      visits[:considered] = [count + 1 for count in visits[:considered]]
    considered = max(2, considered // 2)
  return tuple(sequence[:num_simulations])


def slots(config: TreeConfig, may_be_invalid: bool) -> int:
  """Nodes that a search may evaluate; those it evaluates in vain count, too."""
  width, N = config.max_considered, config.num_simulations
  lengths = _pass_lengths(width, N)
  if config.parallel == "exact":
    fewest = 1 if may_be_invalid else width
    return width * max(len(_pass_lengths(valid, N)) for valid in range(fewest, width + 1))
  # A pass after a halving may ask for as many leaves again, one by one; so may the first one where
  # inherited values tell its actions apart.
  halvings = [length for before, length in itertools.pairwise(lengths) if length != before]
  return N + sum(halvings) + config.reuse * lengths[0]


def _pass_lengths(max_considered: int, num_simulations: int) -> list[int]:
  schedule = considered_visits(max_considered, num_simulations)
  return [len(list(group)) for _, group in itertools.groupby(schedule)]


def grow_exact(search: Search, growth: Growth) -> Growth:
  """Runs every row's simulations, a pass a forward, each row on a schedule of its own.

  A row with fewer valid actions than `max_considered` has another schedule than its neighbours.
  """
  config = search.config
  N, W = config.num_simulations, config.max_considered
  table = np.zeros((W + 1, N + 1), np.int32)
  for considered in range(W + 1):
    table[considered, :N] = considered_visits(considered, N)
  left = np.ones((W + 1, N + 1), np.int32)  # simulations until the pass is over
  for t in range(N - 2, -1, -1):
    left[:, t] = np.where(table[:, t] == table[:, t + 1], left[:, t + 1] + 1, 1)
  left[:, N - 1] = 1
  left[:, N] = 0
  valid = jnp.minimum(W, jnp.sum(~search.invalid, axis=1))

  def one_pass(growth: Growth) -> Growth:
    done = growth.simulations
    length = jnp.asarray(left)[valid, done] * is_open(search, growth)
    visits = jnp.asarray(table)[valid, done]
    return _pass(search, growth, W, length, visits)

  return jax.lax.while_loop(lambda g: jnp.any(is_open(search, g)), one_pass, growth)


def grow_lazy(search: Search, growth: Growth) -> Growth:
  """Runs every row's simulations, a pass a forward; no action may be invalid."""
  config = search.config
  schedule = considered_visits(config.max_considered, config.num_simulations)
  passes = [(visits, len(list(group))) for visits, group in itertools.groupby(schedule)]
  # Neighbouring passes of one width share a loop, so the model is compiled once for each width.
  for width, group in itertools.groupby(passes, key=lambda one: one[1]):
    visits = jnp.asarray([visits for visits, _ in group], jnp.int32)

    def one_pass(carry, width=width, visits=visits):
      index, growth = carry
      length = jnp.where(is_open(search, growth), width, 0)
      return index + 1, _pass(search, growth, width, length, visits[index])

    def unfinished(carry, visits=visits):
      return (carry[0] < len(visits)) & jnp.any(is_open(search, carry[1]))

    _, growth = jax.lax.while_loop(unfinished, one_pass, (jnp.int32(0), growth))
  return growth


def _pass(
  search: Search, growth: Growth, width: int, length: jax.Array, visits: jax.Array
) -> Growth:
  """`length` [B] simulations through different actions that have been visited `visits` times."""
  tree, max_depth = growth.tree, growth.tree.path.shape[-1]
  new_visits = root_visits(tree) - search.inherited
  eligible = (new_visits == jnp.reshape(visits, (-1, 1))) & ~search.invalid
  score = search.gumbel + tree.prior_logits[:, 0] + root_q(tree, search.config)
  score = jnp.where(eligible, score, -jnp.inf)
  score, action = jax.lax.top_k(score, width)
  present = (score > -jnp.inf) & (length > 0)[:, None]
  parent, leaf_action, child = descend(tree, search.config, action, max_depth)
  growth, leaf = _evaluate(search, growth, parent, leaf_action, child, present)
  asked = jnp.sum(eligible, axis=1)
  # Whatever the order, all that were evaluated are visited: no replay. Actions that nobody has
  # visited keep their order, too.
  unvisited = (jnp.reshape(visits, (-1,)) == 0) & (not search.config.reuse)
  whole = jnp.all((length == 0) | (asked == length) | unvisited)
  chosen = present & (jnp.arange(width) < length[:, None]) & whole
  until = growth.simulations + length
  return _replay(search, _commit(search, growth, leaf, chosen), action, leaf, present, until)


def _evaluate(
  search: Search,
  growth: Growth,
  parent: jax.Array,
  action: jax.Array,
  child: jax.Array,
  present: jax.Array,
) -> tuple[Growth, jax.Array]:
  """Puts W leaves a tree through the network; returns them [B, W], terminals met again included."""
  width = parent.shape[1]
  node = jnp.broadcast_to(growth.size[:, None] + jnp.arange(width), parent.shape)
  new = present & (child < 0)
  tree, state = search.expand(growth.tree, growth.state, node, parent, action, new)
  growth = growth.replace(
    tree=tree,
    state=state,
    size=growth.size + width,
    nodes=growth.nodes + jnp.sum(new, axis=1),
    forwards=growth.forwards + 1,
    positions=growth.positions + width,
  )
  return growth, jnp.where(child < 0, node, child)


def _commit(search: Search, growth: Growth, leaf: jax.Array, chosen: jax.Array) -> Growth:
  """Visits the chosen leaves [B, W]."""
  tree = tree_lib.link(growth.tree, leaf, chosen)
  tree = search.backup(tree, leaf, chosen)
  right = at(tree.right, leaf) & chosen
  first = jnp.take_along_axis(leaf, jnp.argmax(right, axis=1)[:, None], axis=1)[:, 0]
  new = (growth.found == 0) & jnp.any(right, axis=1)
  return growth.replace(
    tree=tree,
    simulations=growth.simulations + jnp.sum(chosen, axis=1),
    found=jnp.where(new, first, growth.found),
  )


def _replay(
  search: Search,
  growth: Growth,
  action: jax.Array,
  leaf: jax.Array,
  present: jax.Array,
  until: jax.Array,
) -> Growth:
  """Visits leaves in the order in which the root's selection asks for them, until a row has made
  `until` [B] simulations."""
  max_depth = growth.tree.path.shape[-1]

  def going(growth):
    return growth.simulations < until

  def step(growth):
    wanted = select_root(
      growth.tree, search.config, search.gumbel, search.invalid, search.inherited
    )
    matches = (action == wanted[:, None]) & present
    known = jnp.any(matches, axis=1)
    there = jnp.take_along_axis(leaf, jnp.argmax(matches, axis=1)[:, None], axis=1)
    growth = _commit(search, growth, there, (known & going(growth))[:, None])
    missing = ~known & going(growth)

    def fetch(carry):
      _, growth = carry
      edge = descend(growth.tree, search.config, wanted[:, None], max_depth)
      growth, one = _evaluate(search, growth, *edge, missing[:, None])
      return jnp.bool_(False), _commit(search, growth, one, missing[:, None])

    # A loop of one turn at most: a branch would copy the KV cache.
    return jax.lax.while_loop(lambda carry: carry[0], fetch, (jnp.any(missing), growth))[1]

  return jax.lax.while_loop(lambda g: jnp.any(going(g)), step, growth)
