"""Search along paths: the whole tree is one frontier of open edges, and the best one is next.

Each order scores an edge by its path. `best_first` takes log pi(path) + depth_bonus * depth: it
dives before it widens and never repeats itself (Pearl 1984; the bonus stands for what is still to
come, as in A*). `guided` adds what is known of the edge's parent: the value head's word, and the
wrong ends met below it. `without_replacement` perturbs log pi(path) with Gumbel noise from the top
down, so that the tree's ends come out as samples that never repeat (Kool et al. 2019; Shi et al.
2020). `shared_samples` draws independent samples that pay for new nodes only.

Every row is at its own node, has its own budget, and can be given another problem when it is done.
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
from jaxzero.search.tree import Tree, at


@chex.dataclass(frozen=True)
class Frontier:
  """B trees growing along their paths."""

  tree: Tree
  state: Any  # the network's
  size: jax.Array  # [B] int32: nodes so far, the root included
  limit: jax.Array  # [B] int32: nodes it may have, the root included
  room: jax.Array  # [B] int32: tokens that fit below the root
  keys: jax.Array  # [B, 2] uint32: raw keys of the rows' noise
  score: jax.Array  # [B, M, A] float32 of open edges, -inf of others
  best: jax.Array  # [B, M] float32: the largest score of each node's edges
  guidance: jax.Array  # [B, M] float32, added to the scores of a node's edges
  log_p: jax.Array  # [B, M] float32: log-probability of the path from the root
  cursor: jax.Array  # [B] int32: where a sample in the making stands (shared_samples)
  samples: jax.Array  # [B] int32: samples begun (shared_samples)
  ends: jax.Array  # [B] int32: terminals met
  first_end: jax.Array  # [B] int32: the first of them, 0: none yet
  found: jax.Array  # [B] int32: the first terminal that is right, 0: none yet


@dataclasses.dataclass(frozen=True)
class Expedition:
  """What stays the same during one search of B trees."""

  config: TreeConfig
  network: Network
  rules: Rules
  weights: Weights
  stop_when_found: bool = True


def begin(
  tree: Tree,
  state: Any,
  limit: jax.Array,
  room: jax.Array,
  keys: jax.Array,
  root_gumbel: jax.Array,
  expedition: Expedition,
) -> Frontier:
  """Trees that are only roots.

  Args:
    limit: [B] int32 nodes that a row may make.
    root_gumbel: [B, A] float32, noise on the root's edges.
  """
  B, M = tree.parent.shape
  weights = expedition.weights
  score = jnp.full(tree.prior_logits.shape, -jnp.inf)
  first = tree.prior_logits[:, 0] + root_gumbel
  if expedition.config.order in ("best_first", "guided"):
    first += weights.depth_bonus
  zeros = jnp.zeros(B, jnp.int32)
  frontier = Frontier(
    tree=tree,
    state=state,
    size=zeros + 1,
    limit=jnp.minimum(limit, M - 1) + 1,
    room=room,
    keys=keys,
    score=score.at[:, 0].set(first),
    best=jnp.full((B, M), -jnp.inf).at[:, 0].set(jnp.max(first, axis=1)),
    guidance=jnp.zeros((B, M)),
    log_p=jnp.zeros((B, M)),
    cursor=zeros,
    samples=zeros,
    ends=zeros,
    first_end=zeros,
    found=zeros,
  )
  guidance = _guidance(expedition, tree, zeros[:, None])
  return frontier.replace(guidance=frontier.guidance.at[:, 0].set(guidance[:, 0]))


def is_open(expedition: Expedition, frontier: Frontier) -> jax.Array:
  """[B] bool: the rows whose search goes on."""
  M = frontier.tree.parent.shape[1]
  exists = jnp.arange(M) < frontier.size[:, None]
  open_ = jnp.any(exists & (frontier.best > -jnp.inf), axis=1)
  if expedition.config.order == "shared_samples":
    open_ &= frontier.samples < _most_samples(expedition, frontier)
  wanted = frontier.found == 0 if expedition.stop_when_found else True
  return open_ & (frontier.size < frontier.limit) & wanted


def step(expedition: Expedition, frontier: Frontier) -> Frontier:
  """One forward: every open row's best edge becomes a node."""
  present = is_open(expedition, frontier)
  if expedition.config.order == "shared_samples":
    frontier, parent, action = _walk(expedition, frontier, present)
    present &= frontier.samples < _most_samples(expedition, frontier)
  else:
    parent, action = _best_edge(frontier)
  node = jnp.minimum(frontier.size, frontier.tree.parent.shape[1] - 1)
  new = _expand(expedition, frontier, node, parent, action, present)
  new = _rescore(expedition, frontier, new, node, parent, action, present)
  ended = present & at(new.tree.terminal, node)
  right = ended & at(new.tree.right, node)
  new = new.replace(
    size=frontier.size + present,
    cursor=jnp.where(ended, 0, jnp.where(present, node, frontier.cursor)),
    samples=frontier.samples + ended,
    ends=frontier.ends + ended,
    first_end=jnp.where(ended & (frontier.ends == 0), node, frontier.first_end),
    found=jnp.where(right & (frontier.found == 0), node, frontier.found),
  )
  return _backup(expedition, new, node, ended)


def _best_edge(frontier: Frontier) -> tuple[jax.Array, jax.Array]:
  exists = jnp.arange(frontier.best.shape[1]) < frontier.size[:, None]
  key = jnp.where(exists, frontier.best + frontier.guidance, -jnp.inf)
  parent = jnp.argmax(key, axis=1).astype(jnp.int32)
  action = jnp.argmax(at(frontier.score, parent), axis=-1).astype(jnp.int32)
  return parent, action


def _expand(
  expedition: Expedition,
  frontier: Frontier,
  node: jax.Array,
  parent: jax.Array,
  action: jax.Array,
  present: jax.Array,
) -> Frontier:
  tree, state = expand(
    frontier.tree,
    frontier.state,
    node[:, None],
    parent[:, None],
    action[:, None],
    present[:, None],
    expedition.network,
    expedition.rules,
    frontier.room,
    expedition.weights,
  )
  tree = tree_lib.link(tree, node[:, None], present[:, None])
  return frontier.replace(tree=tree, state=state)


def _rescore(
  expedition: Expedition,
  before: Frontier,
  new: Frontier,
  node: jax.Array,
  parent: jax.Array,
  action: jax.Array,
  present: jax.Array,
) -> Frontier:
  """Closes the edge that was taken, and opens those of the new node."""
  A = new.score.shape[-1]
  logits = at(new.tree.prior_logits, node)
  row = at(before.score, parent)
  edge = jnp.take_along_axis(row, action[:, None], axis=1)
  log_p = at(before.log_p, parent)[:, None] + jnp.take_along_axis(
    at(before.tree.prior_logits, parent), action[:, None], axis=1
  )
  match expedition.config.order:
    case "best_first":
      opened = edge + logits + expedition.weights.depth_bonus
    case "guided":
      likeliest = jnp.max(logits, axis=1, keepdims=True)
      opened = edge + logits - expedition.weights.regret_weight * likeliest
      opened += expedition.weights.depth_bonus
    case "without_replacement":
      opened = conditional_gumbels(edge, log_p + logits, _noise(before.keys, node, A))
    case _:
      opened = jnp.zeros_like(logits)
  opened = jnp.where(at(new.tree.terminal, node)[:, None], -jnp.inf, opened)
  closed = jnp.where(jnp.arange(A) == action[:, None], -jnp.inf, row)
  if expedition.config.order == "shared_samples":
    closed = row  # an edge is drawn again and again
  updates = [
    ("score", parent, closed),
    ("best", parent, jnp.max(closed, axis=1)),
    ("score", node, opened),
    ("best", node, jnp.max(opened, axis=1)),
    ("log_p", node, log_p[:, 0]),
    ("guidance", node, _guidance(expedition, new.tree, node[:, None])[:, 0]),
  ]
  fields = {name: getattr(new, name) for name in ("score", "best", "log_p", "guidance")}
  for name, where, value in updates:
    fields[name] = tree_lib.write(fields[name], where[:, None], value[:, None], present[:, None])
  return new.replace(**fields)


def _guidance(expedition: Expedition, tree: Tree, node: jax.Array) -> jax.Array:
  """[B, W] float32: what value head and wrong ends below say of node [B, W]."""
  if expedition.config.order != "guided":
    return jnp.zeros(node.shape)
  weights = expedition.weights
  visits = at(tree.visits, node)
  # Before its first end a node's value is the value head's guess, not a mean of verdicts.
  failures = jnp.where(visits > 0, jnp.maximum(visits * (1.0 - at(tree.value, node)), 0.0), 0.0)
  value = jnp.log(jnp.maximum(at(tree.raw_value, node), 1e-6))
  return weights.value_weight * value - weights.failure_weight * jnp.log1p(failures)


def _backup(
  expedition: Expedition, frontier: Frontier, node: jax.Array, ended: jax.Array
) -> Frontier:
  """The verdict of a terminal reaches all above it, and with it the guidance of their edges."""
  tree = tree_lib.backup(
    frontier.tree, node[:, None], ended[:, None], discounted=expedition.rules.discounted
  )
  if expedition.config.order != "guided":
    return frontier.replace(tree=tree)
  path = at(tree.path, node)
  above = jnp.arange(path.shape[1]) < at(tree.depth, node)[:, None] - 1
  nodes = jnp.concatenate([jnp.zeros_like(node)[:, None], jnp.where(above, path, 0)], axis=1)
  touched = jnp.concatenate([ended[:, None], above & ended[:, None]], axis=1)
  guidance = _guidance(expedition, tree, nodes)
  guidance = tree_lib.write(frontier.guidance, nodes, guidance, touched)
  return frontier.replace(tree=tree, guidance=guidance)


def conditional_gumbels(top: jax.Array, log_p: jax.Array, gumbel: jax.Array) -> jax.Array:
  """Gumbels with locations log_p [B, A], given that the largest is top [B, 1] (Kool et al. 2019,
  appendix B.3, the numerically stable form)."""
  free = log_p + gumbel
  largest = jnp.max(free, axis=-1, keepdims=True)
  # -log(exp(-top) - exp(-largest) + exp(-free))
  v = top - free + jnp.log1p(-jnp.exp(jnp.minimum(free - largest, -1e-7)))
  v = jnp.where(free == largest, -jnp.inf, v)
  return top - jnp.maximum(v, 0.0) - jnp.log1p(jnp.exp(-jnp.abs(v)))


def _noise(keys: jax.Array, number: jax.Array, A: int) -> jax.Array:
  """[B, A] Gumbel noise, a function of the row's key and a number [B]."""

  def draw(key, number):
    return jax.random.gumbel(jax.random.fold_in(jax.random.wrap_key_data(key), number), (A,))

  return jax.vmap(draw)(keys, number)


def _most_samples(expedition: Expedition, frontier: Frontier) -> jax.Array:
  """[B] int32; a policy that is sure would sample on for ever."""
  most = expedition.config.num_samples
  return jnp.minimum(frontier.limit, most) if most else frontier.limit


def _walk(
  expedition: Expedition, frontier: Frontier, present: jax.Array
) -> tuple[Frontier, jax.Array, jax.Array]:
  """Draws tokens from where each row's sample stands until one leads to no node yet.

  A sample that was drawn before counts once more for all above its end.
  """
  tree, (B, _, A) = frontier.tree, frontier.tree.children.shape
  most = _most_samples(expedition, frontier)

  def draw(carry):
    cursor, samples, _, _, settled, visits, value = carry
    moving = present & ~settled & (samples < most)
    number = samples * (tree.path.shape[-1] + 1) + at(tree.depth, cursor)
    noisy = at(tree.prior_logits, cursor) + _noise(frontier.keys, number, A)
    action = jnp.argmax(noisy, axis=1).astype(jnp.int32)
    child = jnp.take_along_axis(at(tree.children, cursor), action[:, None], axis=1)[:, 0]
    found = moving & (child < 0)
    again = moving & (child >= 0) & at(tree.terminal, jnp.maximum(child, 0))
    onward = jnp.where(again, 0, jnp.maximum(child, 0))
    parent = jnp.where(found, cursor, carry[2])
    action = jnp.where(found, action, carry[3])
    cursor = jnp.where(moving & ~found, onward, cursor)
    counted = tree_lib.backup(
      tree.replace(visits=visits, value=value),
      jnp.maximum(child, 0)[:, None],
      again[:, None],
      discounted=expedition.rules.discounted,
    )
    return (
      cursor,
      samples + again,
      parent,
      action,
      settled | found,
      counted.visits,
      counted.value,
    )

  def unsettled(carry):
    return jnp.any(present & ~carry[4] & (carry[1] < most))

  zeros = jnp.zeros(B, jnp.int32)
  carry = (frontier.cursor, frontier.samples, zeros, zeros, zeros > 0, tree.visits, tree.value)
  cursor, samples, parent, action, _, visits, value = jax.lax.while_loop(unsettled, draw, carry)
  tree = tree.replace(visits=visits, value=value)
  return frontier.replace(tree=tree, cursor=cursor, samples=samples), parent, action
