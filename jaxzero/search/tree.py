"""A search tree as a plain dict: what people look at and what is kept in the data set."""

from __future__ import annotations

from typing import Any

import mctx
import numpy as np

from jaxzero.tokenizers import Tokenizer


def to_dict(
  tree: mctx.Tree, row: int, tokenizer: Tokenizer, problem: str, chosen: int
) -> dict[str, Any]:
  """One row of a batched tree (already on the host) as JSON-able values.

  Args:
    tree: numpy leaves, [B, N + 1, ...].
    chosen: the token played from the root.

  Returns:
    {"problem", "prefix", "num_simulations", "nodes": [{"id", "parent", "token", "prior", "visits",
    "value", "terminal", "right", "order"}], "chosen": node id or None}. Nodes are in the order in
    which simulations made them; below a terminal there are none.
  """
  node = tree.embeddings
  parents, actions = tree.parents[row], tree.action_from_parent[row]
  nodes: list[dict[str, Any]] = []
  chosen_id = None
  below_terminal: set[int] = set()
  for index in range(parents.shape[0]):
    parent = int(parents[index])
    if index and (parent < 0 or parent in below_terminal or bool(node.terminal[row, parent])):
      below_terminal.add(index)
      continue
    token, prior = "", 1.0
    if index:
      token_id = int(node.candidates[row, parent, actions[index]])
      token = tokenizer.render([token_id])
      prior = float(np.exp(tree.children_prior_logits[row, parent, actions[index]]))
      if parent == 0 and token_id == chosen:
        chosen_id = index
    # A terminal's value is the reward on its edge.
    reward = tree.children_rewards[row, parent, actions[index]] if index else 0.0
    terminal = bool(node.terminal[row, index])
    verified = terminal and float(tree.children_discounts[row, parent, actions[index]]) == 0.0
    nodes.append(
      {
        "id": index,
        "parent": parent,
        "token": token,
        "prior": round(prior, 5),
        "visits": int(tree.node_visits[row, index]),
        "value": round(float(reward if verified else tree.node_values[row, index]), 5),
        "terminal": terminal,
        "right": bool(node.right[row, index]) if verified else None,
        "order": index,
      }
    )
  length = int(node.length[row, 0])
  return {
    "problem": problem,
    "prefix": tokenizer.render(node.completion[row, 0, :length].tolist()),
    "num_simulations": parents.shape[0] - 1,
    "nodes": nodes,
    "chosen": chosen_id,
  }
