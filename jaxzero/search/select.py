"""Orders that back up values: mctx's public selection functions over our tree, in lanes."""

from __future__ import annotations

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import mctx

from jaxzero.search.config import TreeConfig
from jaxzero.search.tree import Tree, at, view


@chex.dataclass(frozen=True)
class RootData:
  """What a root's selection is told beside the tree."""

  root_gumbel: jax.Array  # [B, A] float32
  completed_q: jax.Array  # [B, A] float32


def qtransform(config: TreeConfig) -> Any:
  """How Q-values become logits, as the config says."""
  if config.order == "puct":
    return mctx.qtransform_by_parent_and_siblings
  return functools.partial(
    mctx.qtransform_completed_by_mix_value,
    value_scale=config.value_scale,
    maxvisit_init=config.maxvisit_init,
    rescale_values=config.rescale_values,
  )


def root_selection(config: TreeConfig, gumbel_qtransform: Any = None) -> Any:
  """mctx's root selection: f(key, unbatched tree, node); gumbel's q-transform may be another."""
  if config.order == "puct":
    return functools.partial(mctx.muzero_action_selection, depth=0, qtransform=qtransform(config))
  return functools.partial(
    mctx.gumbel_muzero_root_action_selection,
    num_simulations=config.num_simulations,
    max_num_considered_actions=config.max_considered,
    qtransform=gumbel_qtransform or qtransform(config),
  )


def interior_selection(config: TreeConfig) -> Any:
  """mctx's interior selection: f(key, unbatched tree, node, depth)."""
  if config.order == "puct":
    return functools.partial(mctx.muzero_action_selection, qtransform=qtransform(config))
  return functools.partial(
    mctx.gumbel_muzero_interior_action_selection, qtransform=qtransform(config)
  )


def root_visits(tree: Tree) -> jax.Array:
  """[B, A] int32: the visits of the root's children."""
  return view(tree, jnp.zeros(tree.parent.shape[0], jnp.int32)).children_visits[:, 0]


def root_q(tree: Tree, config: TreeConfig) -> jax.Array:
  """[B, A] float32: the root's transformed Q-values, by all of its visits."""
  root = view(tree, jnp.zeros(tree.parent.shape[0], jnp.int32))
  return jax.vmap(qtransform(config), in_axes=(0, None))(root, 0)


def select_root(
  tree: Tree, config: TreeConfig, gumbel: jax.Array, invalid: jax.Array, inherited: jax.Array
) -> jax.Array:
  """The root's next action [B] int32.

  PUCT goes on with all visits. Sequential halving counts new ones, so that every search runs its
  whole schedule; what it ranks actions by sees all of them.

  Args:
    gumbel: [B, A] float32.
    invalid: [B, A] bool.
    inherited: [B, A] int32, the visits of the root's children that an earlier search made.
  """
  extra = RootData(root_gumbel=gumbel, completed_q=root_q(tree, config))
  root = view(tree, jnp.zeros(len(gumbel), jnp.int32), extra, invalid)
  if config.order == "gumbel":
    root = root.replace(children_visits=root.children_visits - inherited[:, None])
  selection = root_selection(config, lambda tree, node: tree.extra_data.completed_q)
  select = functools.partial(selection, jax.random.key(0))
  return jax.vmap(select, in_axes=(0, None))(root, 0)


def select_interior(tree: Tree, config: TreeConfig, node: jax.Array) -> jax.Array:
  """The next action [B, W] int32 at node [B, W] below the root."""
  seen = view(tree, node)
  select = functools.partial(interior_selection(config), jax.random.key(0))
  action = jax.vmap(select, in_axes=(0, None, None))(seen, 0, 1).reshape(node.shape)
  return jnp.where(at(tree.forced, node), 0, action)


def descend(
  tree: Tree, config: TreeConfig, action: jax.Array, max_depth: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """From the root by action [B, W], down to an edge that leads nowhere yet.

  Returns:
    parent, action and child [B, W] int32: the edge, and -1; or, where the way ends at a terminal or
    at max_depth, the edge to that node, and the node, which is visited once more.
  """

  def child_of(node, action):
    return jnp.take_along_axis(at(tree.children, node), action[..., None], axis=-1)[..., 0]

  def goes_on(child):
    below = jnp.maximum(child, 0)
    return (child >= 0) & ~at(tree.terminal, below) & (at(tree.depth, below) < max_depth)

  def step(carry):
    node, action, child = carry
    going = goes_on(child)
    node = jnp.where(going, child, node)
    action = jnp.where(going, select_interior(tree, config, node), action)
    return node, action, jnp.where(going, child_of(node, action), child)

  root = jnp.zeros_like(action)
  carry = (root, action, child_of(root, action))
  return jax.lax.while_loop(lambda carry: jnp.any(goes_on(carry[2])), step, carry)
