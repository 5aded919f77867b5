"""The search tree: arrays of nodes, and the two things that happen to them, growth and backup.

Node 0 is the root; node i > 0 is one token and owns tree slot i - 1 of the KV cache. What mctx
keeps per edge `[B, N, A]` (visits, values, rewards) is kept once per node and gathered through
`children`; mctx's public selection functions and q-transforms see it as a `mctx.Tree` of one node
(`view`). A node counts once it is written: what an array holds beyond is never read.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
import mctx

from jaxzero.search.record import NO_END, RIGHT, UNVERIFIED, WRONG, Record

NO_NODE = -1


@chex.dataclass(frozen=True)
class Tree:
  """B trees of M node slots, A candidates a node, D the deepest path, S the verifier's state."""

  token: jax.Array  # [B, M] int32
  parent: jax.Array  # [B, M] int32; -1: the root, or a slot that holds no node
  action: jax.Array  # [B, M] int32: index among the parent's candidates
  depth: jax.Array  # [B, M] int32: tokens below the root
  path: jax.Array  # [B, M, D] int32: nodes from below the root to here; then here again
  terminal: jax.Array  # [B, M] bool
  right: jax.Array  # [B, M] bool: a terminal that the verifier found right
  forced: jax.Array  # [B, M] bool: inside a run, its first candidate is the only way on
  judge: jax.Array  # [B, M, S] int32: the verifier's state
  visits: jax.Array  # [B, M] int32
  raw_value: jax.Array  # [B, M] float32: P(right) by the value head
  value: jax.Array  # [B, M] float32: mean return over the visits
  reward: jax.Array  # [B, M] float32, on the edge from the parent
  discount: jax.Array  # [B, M] float32, on the edge from the parent
  candidates: jax.Array  # [B, M, A] int32 tokens, likeliest first (the root's: as they were drawn)
  prior_logits: jax.Array  # [B, M, A] float32: log-probabilities over the whole vocabulary
  children: jax.Array  # [B, M, A] int32 nodes, -1 where there is none


@chex.dataclass(frozen=True)
class Nodes:
  """What network and rules say of W new nodes a tree; [B, W] unless said otherwise."""

  judge: jax.Array  # [B, W, S] int32
  terminal: jax.Array
  right: jax.Array
  reward: jax.Array
  discount: jax.Array
  raw_value: jax.Array
  candidates: jax.Array  # [B, W, A]
  prior_logits: jax.Array  # [B, W, A]


def plant(
  num_nodes: int,
  max_depth: int,
  candidates: jax.Array,
  prior_logits: jax.Array,
  value: jax.Array,
  judge: jax.Array,
) -> Tree:
  """Trees that are only roots.

  Args:
    num_nodes: M, the root included.
    candidates, prior_logits: [B, A] of the root.
    value: [B] float32 of the root.
    judge: [B, S] int32, the verifier's state at the root.
  """
  B, A = candidates.shape
  M = num_nodes

  def root(x: jax.Array) -> jax.Array:
    return jnp.pad(x[:, None], ((0, 0), (0, M - 1), *[(0, 0)] * (x.ndim - 1)))

  integers, floats, flags = (jnp.zeros((B, M), dtype) for dtype in (jnp.int32, jnp.float32, bool))
  return Tree(
    token=integers,
    parent=integers + NO_NODE,
    action=integers + NO_NODE,
    depth=integers,
    path=jnp.zeros((B, M, max_depth), jnp.int32),
    terminal=flags,
    right=flags,
    forced=flags,
    judge=root(judge),
    visits=root(jnp.ones(B, jnp.int32)),
    raw_value=root(value),
    value=root(value),
    reward=floats,
    discount=floats + 1.0,
    candidates=root(candidates),
    prior_logits=root(prior_logits),
    children=jnp.full((B, M, A), NO_NODE, jnp.int32),
  )


def at(x: jax.Array, node: jax.Array) -> jax.Array:
  """Rows of x [B, M, ...] at node [B, ...] int32."""
  rows = jnp.arange(x.shape[0]).reshape(-1, *[1] * (node.ndim - 1))
  return x.at[rows, node].get(mode="promise_in_bounds")


def write(x: jax.Array, node: jax.Array, new: jax.Array, present: jax.Array) -> jax.Array:
  """x [B, M, ...] with new [B, W, ...] at node [B, W] where present [B, W]."""
  rows = jnp.arange(x.shape[0])[:, None]
  return x.at[rows, jnp.where(present, node, x.shape[1])].set(new.astype(x.dtype), mode="drop")


def sprout(
  tree: Tree, node: jax.Array, parent: jax.Array, action: jax.Array, present: jax.Array
) -> Tree:
  """Writes where new nodes [B, W] hang: below parent [B, W] by action [B, W], where present.

  They are not linked yet: no parent knows of them.
  """
  token = jnp.take_along_axis(at(tree.candidates, parent), action[..., None], axis=-1)[..., 0]
  depth = at(tree.depth, parent) + 1
  index = jnp.arange(tree.path.shape[-1])
  path = jnp.where(index < depth[..., None] - 1, at(tree.path, parent), node[..., None])
  new = {"token": token, "parent": parent, "action": action, "depth": depth, "path": path}
  return tree.replace(
    **{name: write(getattr(tree, name), node, x, present) for name, x in new.items()}
  )


def fill(tree: Tree, node: jax.Array, nodes: Nodes, present: jax.Array) -> Tree:
  """Writes what is known of new nodes [B, W]; nobody has visited them yet."""
  nothing = jnp.zeros_like(node)
  new: dict[str, jax.Array] = {
    **dict(nodes.items()),
    "value": nodes.raw_value,
    "visits": nothing,
    "forced": nothing,
    "children": jnp.full_like(nodes.candidates, NO_NODE),
  }
  return tree.replace(
    **{name: write(getattr(tree, name), node, x, present) for name, x in new.items()}
  )


def link(tree: Tree, node: jax.Array, present: jax.Array) -> Tree:
  """Makes node [B, W] children of their parents where present [B, W] bool."""
  rows = jnp.arange(node.shape[0])[:, None]
  parent = jnp.where(present, at(tree.parent, node), tree.parent.shape[1])
  action = at(tree.action, node)
  return tree.replace(children=tree.children.at[rows, parent, action].set(node, mode="drop"))


def backup(
  tree: Tree,
  leaf: jax.Array,
  present: jax.Array,
  returns: jax.Array | None = None,
  discounted: bool = False,
) -> Tree:
  """One more visit of leaf [B, W] where present [B, W] bool; all above it take in its return.

  A node's value is the mean return over its visits, and a leaf that was visited before keeps its
  own (as in mctx). The W leaves of a tree must hang below different children of the root.

  Args:
    returns: [B, W] float32, what all above the leaf take in; default: its reward and value.
    discounted: edges above the leaf's own have rewards or discounts, too; `returns` is not used.
  """
  M = tree.parent.shape[1]
  rows = jnp.arange(leaf.shape[0])[:, None, None]
  depth, path = at(tree.depth, leaf)[..., None], at(tree.path, leaf)
  index = jnp.arange(path.shape[-1])
  if discounted:
    seen = _discounted_returns(tree, path, depth, at(tree.raw_value, leaf))
  else:
    if returns is None:
      returns = at(tree.reward, leaf) + at(tree.discount, leaf) * at(tree.raw_value, leaf)
    seen = jnp.broadcast_to(returns[..., None], (*leaf.shape, path.shape[-1] + 1))
  from_root = jnp.where(present, seen[..., 0], 0.0)
  visits, mean = at(tree.visits, path), at(tree.value, path)
  mean = jnp.where(index < depth - 1, (mean * visits + seen[..., 1:]) / (visits + 1), mean)
  touched = jnp.where((index < depth) & present[..., None], path, M)
  more, before = jnp.sum(present, axis=1), tree.visits[:, 0]
  root = (tree.value[:, 0] * before + jnp.sum(from_root, axis=1)) / (before + more)
  root = jnp.where(more > 0, root, tree.value[:, 0])  # bit for bit, whatever the neighbours do
  return tree.replace(
    visits=tree.visits.at[rows, touched].set(visits + 1, mode="drop").at[:, 0].add(more),
    value=tree.value.at[rows, touched].set(mean, mode="drop").at[:, 0].set(root),
  )


def _discounted_returns(
  tree: Tree, path: jax.Array, depth: jax.Array, value: jax.Array
) -> jax.Array:
  """[B, W, D + 1]: the return seen from the root, then from each node of the path."""
  on_path = jnp.arange(path.shape[-1]) < depth
  reward = jnp.where(on_path, at(tree.reward, path), 0.0)
  discount = jnp.where(on_path, at(tree.discount, path), 1.0)

  def edge(later, r_and_d):
    later = r_and_d[0] + r_and_d[1] * later
    return later, later

  edges = (jnp.moveaxis(reward, -1, 0), jnp.moveaxis(discount, -1, 0))
  _, seen = jax.lax.scan(edge, value, edges, reverse=True)
  return jnp.concatenate([jnp.moveaxis(seen, 0, -1), value[..., None]], axis=-1)


def view(
  tree: Tree, node: jax.Array, extra: Any = None, invalid: jax.Array | None = None
) -> mctx.Tree:
  """Nodes [B] or [B, W] as a batch of one-node `mctx.Tree`s, for mctx's public functions.

  Its batch axis is B, or B * W. extra: the trees' `extra_data`; invalid: [B, A] bool at the root.
  """
  children = at(tree.children, node)
  there = children >= 0
  child = jnp.maximum(children, 0)
  invalid = jnp.zeros(children.shape, bool) if invalid is None else invalid

  def of_node(x: jax.Array) -> jax.Array:
    return at(x, node).reshape(-1, 1, *x.shape[2:])

  def of_edges(x: jax.Array) -> jax.Array:
    return jnp.where(there, at(x, child), 0).reshape(-1, 1, children.shape[-1])

  return mctx.Tree(
    node_visits=of_node(tree.visits),
    raw_values=of_node(tree.raw_value),
    node_values=of_node(tree.value),
    parents=of_node(tree.parent),
    action_from_parent=of_node(tree.action),
    children_index=of_node(tree.children),
    children_prior_logits=of_node(tree.prior_logits),
    children_visits=of_edges(tree.visits),
    children_rewards=of_edges(tree.reward),
    children_discounts=of_edges(tree.discount),
    children_values=of_edges(tree.value),
    embeddings=None,
    root_invalid_actions=invalid.reshape(-1, children.shape[-1]),
    extra_data=extra,
  )


def compact(tree: Tree) -> Record:
  """Trees grown along their paths [B, M, ...], as records of M slots; pure, for the device."""
  above = jnp.maximum(tree.parent, 0)[..., None]
  priors = jnp.take_along_axis(tree.prior_logits, above, axis=1)
  prior = jnp.take_along_axis(priors, jnp.maximum(tree.action, 0)[..., None], axis=2)[..., 0]
  exists = tree.parent >= 0
  ended = exists & tree.terminal
  verified = ended & (tree.discount == 0)  # its value is the reward on its edge
  verdict = jnp.where(verified, jnp.where(tree.right, RIGHT, WRONG), UNVERIFIED)
  return Record(
    parent=tree.parent,
    token=jnp.where(exists, tree.token, 0),
    prior=jnp.where(exists, prior, 0.0),
    visits=tree.visits,
    value=jnp.where(verified, tree.reward, tree.value),
    verdict=jnp.where(ended, verdict, NO_END).astype(jnp.int8),
  )
