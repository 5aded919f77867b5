"""A search tree as small arrays, what the data set keeps, and as a dict, what people look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
  from jaxzero.tokenizers import Tokenizer

NO_END, WRONG, RIGHT, UNVERIFIED = -1, 0, 1, 2
"""A node's verdict; an end is wrong also where it is only known to be lost, or out of room."""


class Record(NamedTuple):
  """One tree of M nodes in the order in which they were made, the root first.

  On the device each array has a leading axis for the trees, and M slots for each of them.
  """

  parent: Any  # [M] int32; -1: the root, or a slot that holds no node
  token: Any  # [M] int32; 0 at the root
  prior: Any  # [M] float32: log-probability of the token after its parent; 0 at the root
  visits: Any  # [M] int32
  value: Any  # [M] float32: mean return over the visits, an end's verdict, or the value head's word
  verdict: Any  # [M] int8


def trim(record: Record) -> Record:
  """One tree of a batch (numpy, M slots) without the slots that hold no node."""
  size = 1 + int((record.parent >= 0).sum())
  return Record(*(x[:size].copy() for x in record))


def path_to(record: Record, node: int) -> list[int]:
  """The nodes from below the root to `node`; [] for the root."""
  path = []
  while node > 0:
    path.append(node)
    node = int(record.parent[node])
  return path[::-1]


def follow(record: Record, tokens: np.ndarray) -> list[int] | None:
  """The nodes of a completion `tokens` [T], or None where the tree has no such path."""
  below = zip(record.parent.tolist(), record.token.tolist(), strict=True)
  edges = {edge: node for node, edge in enumerate(below)}
  path, node = [], 0
  for token in tokens.tolist():
    if (node, token) not in edges:
      return None
    node = edges[node, token]
    path.append(node)
  return path


def masses(record: Record) -> tuple[np.ndarray, np.ndarray]:
  """How much of the policy's mass below each node is known to end right, and wrong.

  Returns:
    two arrays [M] float64 in [0, 1]; what they leave of 1 was not looked at.
  """
  right, wrong = ((record.verdict == verdict).astype(float) for verdict in (RIGHT, WRONG))
  share = np.exp(np.minimum(record.prior, 0.0, dtype=np.float64))
  for node in range(len(record.parent) - 1, 0, -1):  # children come after their parents
    parent = record.parent[node]
    right[parent] += share[node] * right[node]
    wrong[parent] += share[node] * wrong[node]
  return right, wrong


def to_dict(record: Record, tokenizer: Tokenizer, problem: str, chosen: int) -> dict[str, Any]:
  """One tree (on the host, trimmed) as JSON-able values.

  Args:
    chosen: the token played from the root.

  Returns:
    {"problem", "prefix" (""), "num_simulations" (nodes grown), "nodes": [{"id", "parent", "token",
    "prior", "visits", "value", "terminal", "right" (None: not verified), "order"}], "chosen": node
    id or None}. Nodes are in the order in which they were made.
  """
  nodes = [
    {
      "id": node,
      "parent": int(record.parent[node]),
      "token": tokenizer.render([int(record.token[node])]) if node else "",
      "prior": round(float(np.exp(record.prior[node])), 5),
      "visits": int(record.visits[node]),
      "value": round(float(record.value[node]), 5),
      "terminal": bool(record.verdict[node] != NO_END),
      "right": {WRONG: False, RIGHT: True}.get(int(record.verdict[node])),
      "order": node,
    }
    for node in range(len(record.parent))
  ]
  path = follow(record, np.array([chosen]))
  return {
    "problem": problem,
    "prefix": "",
    "num_simulations": len(nodes) - 1,
    "nodes": nodes,
    "chosen": path[0] if path else None,
  }
