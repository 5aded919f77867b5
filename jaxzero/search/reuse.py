"""Subtree reuse: a search goes on from what the last one grew below the moves played since.

The subtree below the new root becomes a tree of its own. Its nodes keep their order (a parent comes
before its children), their statistics, and their KV, which moves with them. The new root draws its
candidates anew from the whole vocabulary; inherited children that are not among them are dropped
with all below. The first `keep` nodes survive: dropping late ones never orphans a child, and what
stays remembers in its mean what the dropped ones returned.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxzero.search.tree import NO_NODE, Tree, at


@chex.dataclass(frozen=True)
class Past:
  """The last search's trees, and where in them B rows stand now."""

  tree: Tree
  node: jax.Array  # [B] int32: 0, the root; -1, a row that has left its tree


def follow(past: Past, token: jax.Array, moving: jax.Array) -> Past:
  """Walks down by token [B] int32 in the rows that are moving [B] bool."""
  node = jnp.maximum(past.node, 0)
  children = at(past.tree.children, node)
  taken = (at(past.tree.candidates, node) == token[:, None]) & (past.node >= 0)[:, None]
  child = jnp.max(jnp.where(taken, children, NO_NODE), axis=1)
  return past.replace(node=jnp.where(moving, child, past.node))


def subtree(past: Past, fresh: Tree, keep: int) -> tuple[Tree, jax.Array]:
  """The subtrees below the nodes where the rows stand, as trees of their own.

  The new root's visits are its own one and those of the children it keeps, its value the mean of
  the network's word and of their returns: as if the dropped children had never been visited.

  Args:
    past: rows at the root or outside of their tree inherit nothing.
    fresh: trees that are only the new roots (`plant`), as many slots as the past's.
    keep: the most nodes to inherit; they go to slots 1..keep.

  Returns:
    the trees, and [B, keep] int32: the old node that each of the slots 1..keep takes over.
  """
  old, (B, M) = past.tree, past.tree.parent.shape
  rows, slots = jnp.arange(B)[:, None], jnp.arange(M)
  root = jnp.maximum(past.node, 0)
  level = at(old.depth, root)
  first = _ancestor(old, level)
  matches = at(old.token, first)[..., None] == fresh.candidates[:, :1]
  linked = (old.parent >= 0) & (old.children[rows, old.parent, old.action] == slots)
  below = linked & (root > 0)[:, None] & (old.depth > level[:, None])
  kept = below & (_ancestor(old, level - 1) == root[:, None]) & jnp.any(matches, axis=-1)
  number = jnp.cumsum(kept, axis=1, dtype=jnp.int32)
  kept &= number <= keep
  number = jnp.where(kept, number, jnp.where(slots == root[:, None], 0, NO_NODE))
  source = jnp.argsort(~kept, axis=1, stable=True)[:, :keep].astype(jnp.int32)

  def renumbered(node: jax.Array) -> jax.Array:
    return jnp.where(node >= 0, at(number, jnp.maximum(node, 0)), NO_NODE)

  moved: Tree = jax.tree.map(lambda x: at(x, source), old)
  parent = renumbered(moved.parent)
  D = moved.path.shape[-1]
  steps = jnp.minimum(jnp.arange(D) + level[:, None], D - 1)[:, None]
  moved = moved.replace(
    parent=parent,
    action=jnp.where(parent == 0, jnp.argmax(at(matches, source), axis=-1), moved.action),
    depth=moved.depth - level[:, None],
    path=renumbered(jnp.take_along_axis(moved.path, steps, axis=-1)),
    children=renumbered(moved.children),
  )
  present = jnp.arange(keep) < jnp.sum(kept, axis=1, keepdims=True)
  return _rooted(fresh, moved, present), source


def _ancestor(tree: Tree, level: jax.Array) -> jax.Array:
  """[B, M] int32: each node's ancestor at depth level [B] + 1; where it is no deeper, itself."""
  index = jnp.clip(level, 0, tree.path.shape[-1] - 1)[:, None, None]
  return jnp.take_along_axis(tree.path, index, axis=-1)[..., 0]


def _rooted(fresh: Tree, moved: Tree, present: jax.Array) -> Tree:
  """Hangs moved nodes below fresh roots: they take slots 1..keep where present [B, keep]."""
  keep = present.shape[1]

  def put(new: jax.Array, default: jax.Array) -> jax.Array:
    here = present.reshape(*present.shape, *[1] * (new.ndim - 2))
    return default.at[:, 1 : keep + 1].set(jnp.where(here, new, default[:, 1 : keep + 1]))

  rows, A = jnp.arange(present.shape[0])[:, None], fresh.candidates.shape[-1]
  top = present & (moved.parent == 0)
  children = jnp.where(top, jnp.arange(1, keep + 1, dtype=jnp.int32), NO_NODE)
  counts = jnp.where(top, moved.visits, 0)
  visits = fresh.visits[:, 0] + jnp.sum(counts, axis=1)
  returns = jnp.where(top, moved.reward + moved.discount * moved.value, 0.0)
  total = fresh.raw_value[:, 0] + jnp.sum(counts * returns, axis=1)
  tree: Tree = jax.tree.map(put, moved, fresh)
  return tree.replace(
    children=tree.children.at[rows, 0, jnp.where(top, moved.action, A)].set(children, mode="drop"),
    visits=tree.visits.at[:, 0].set(visits),
    value=tree.value.at[:, 0].set(total / visits),
  )
