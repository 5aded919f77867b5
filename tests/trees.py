"""Trees made by hand: the paths that a test wants, as the arrays of an episode's tree."""

import numpy as np


def tree_arrays(*paths, right=()):
  """The tree of some completions, as keyword arguments of `Episode`; those in `right` end right."""
  nodes, parent, token, verdict = {(): 0}, [-1], [0], [-1]
  right = {tuple(path.tolist()) for path in right}
  for path in paths:
    tokens = tuple(path.tolist())
    for depth in range(1, len(tokens) + 1):
      if tokens[:depth] not in nodes:
        parent.append(nodes[tokens[: depth - 1]])
        token.append(tokens[depth - 1])
        nodes[tokens[:depth]] = len(verdict)
        verdict.append(1 if tokens[:depth] in right else -1)
  M = len(parent)
  return {
    "tree_parent": np.array(parent, np.int32),
    "tree_token": np.array(token, np.int32),
    "tree_prior": np.zeros(M, np.float32),
    "tree_visits": np.ones(M, np.int32),
    "tree_value": np.full(M, 0.5, np.float32),
    "tree_verdict": np.array(verdict, np.int8),
  }
