"""Stock mctx's loop over our tree: the oracle of `values`, and an option.

mctx hands `recurrent_fn` the parent's embedding alone; its public `loop_fn` lets the loop carry
more: our tree and the network's KV cache, through a cell that lives while the body is traced. The
embedding is the node's number, and the node of simulation i is node i + 1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mctx

from jaxzero.search.select import interior_selection, root_selection
from jaxzero.search.tree import Tree, at
from jaxzero.search.values import Search


def grow_stock(search: Search, tree: Tree, state: Any) -> tuple[Tree, Any]:
  """All simulations by `mctx.search`; below a terminal it goes on, and learns nothing new."""
  B = tree.parent.shape[0]
  cell: dict[str, Any] = {}

  def loop_fn(lower, upper, body, mctx_state):
    def wrapped(simulation, carry):
      mctx_state, cell["tree"], cell["state"] = carry
      cell["node"] = jnp.full(B, simulation + 1, jnp.int32)
      return body(simulation, mctx_state), cell["tree"], cell["state"]

    carry = jax.lax.fori_loop(lower, upper, wrapped, (mctx_state, tree, state))
    mctx_state, cell["tree"], cell["state"] = carry
    return mctx_state

  def recurrent_fn(_, rng, action, parent):
    del rng
    node, absorbed = cell["node"], at(cell["tree"].terminal, parent)
    lanes = (x[:, None] for x in (node, parent, action, ~absorbed))
    cell["tree"], cell["state"] = search.expand(cell["tree"], cell["state"], *lanes)
    new = cell["tree"]
    out = mctx.RecurrentFnOutput(
      reward=jnp.where(absorbed, 0.0, at(new.reward, node)),
      discount=jnp.where(absorbed, 1.0, at(new.discount, node)),
      prior_logits=at(new.prior_logits, node),
      value=jnp.where(absorbed, at(new.raw_value, parent), at(new.raw_value, node)),
    )
    # Below a terminal is that terminal again.
    return out, jnp.where(absorbed, parent, node)

  root = mctx.RootFnOutput(
    prior_logits=tree.prior_logits[:, 0],
    value=tree.raw_value[:, 0],
    embedding=jnp.zeros(B, jnp.int32),
  )
  done = mctx.search(
    params=None,
    rng_key=jax.random.key(0),
    root=root,
    recurrent_fn=recurrent_fn,
    root_action_selection_fn=root_selection(search.config),
    interior_action_selection_fn=interior_selection(search.config),
    num_simulations=search.config.num_simulations,
    max_depth=tree.path.shape[-1],
    invalid_actions=search.invalid,
    extra_data=mctx.GumbelMuZeroExtraData(root_gumbel=search.gumbel),
    loop_fn=loop_fn,
  )
  grown = cell["tree"].replace(
    visits=done.node_visits, value=done.node_values, children=done.children_index
  )
  return grown, cell["state"]
