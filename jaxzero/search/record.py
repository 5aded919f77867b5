"""A search tree as a plain dict: what people look at and what is kept in the data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from jaxzero.search.tree import Tree
from jaxzero.tokenizers import Tokenizer


def to_dict(
  tree: Tree, prefix: list[int], tokenizer: Tokenizer, problem: str, chosen: int
) -> dict[str, Any]:
  """One tree (one row, on the host) as JSON-able values.

  Args:
    tree: numpy leaves, [M, ...].
    prefix: the completion's tokens above the root.
    chosen: the token played from the root.

  Returns:
    {"problem", "prefix", "num_simulations" (nodes grown), "nodes": [{"id", "parent", "token",
    "prior", "visits", "value", "terminal", "right", "order"}], "chosen": node id or None}. Nodes
    are in the order in which they were made.
  """
  nodes = [_node(tree, 0, -1, "", 1.0)]
  ids = {0: 0}
  chosen_id = None
  for index in range(1, len(tree.parent)):
    parent, action = int(tree.parent[index]), int(tree.action[index])
    if parent not in ids or tree.terminal[parent] or tree.children[parent, action] != index:
      continue
    ids[index] = len(nodes)
    token = int(tree.token[index])
    prior = float(np.exp(tree.prior_logits[parent, action]))
    if parent == 0 and token == chosen:
      chosen_id = ids[index]
    nodes.append(
      _node(tree, index, ids[parent], tokenizer.render([token]), prior)
      | {
        "id": ids[index],
        "order": ids[index],
      }
    )
  return {
    "problem": problem,
    "prefix": tokenizer.render(prefix),
    "num_simulations": len(nodes) - 1,
    "nodes": nodes,
    "chosen": chosen_id,
  }


def _node(tree: Tree, index: int, parent: int, token: str, prior: float) -> dict[str, Any]:
  terminal = bool(tree.terminal[index])
  # A terminal's value is the reward on its edge, where the verifier spoke.
  verified = terminal and float(tree.discount[index]) == 0.0
  return {
    "id": 0,
    "parent": parent,
    "token": token,
    "prior": round(prior, 5),
    "visits": int(tree.visits[index]),
    "value": round(float(tree.reward[index] if verified else tree.value[index]), 5),
    "terminal": terminal,
    "right": bool(tree.right[index]) if verified else None,
    "order": 0,
  }
