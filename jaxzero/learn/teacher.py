"""What a teacher's searches know: soft targets along every right end that their trees hold.

At state s of a tree the target is the teacher's policy pi, given that it reaches one of those ends.
With R(s), the share of pi's mass below s whose ends are known to be right, Bayes' rule says

  w(a | s) = pi(a | s) R(s a) / R(s),    R(s) = sum_a pi(a | s) R(s a).                        (1)

It is control as inference (Levine 2018, section 2), and what imitating the teacher's right samples
comes to in the mean, without their noise.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from jaxzero.search.record import Record, masses
from jaxzero.tasks.base import Problem

CANDIDATES = 8
"""Tokens with a target of their own at each state: the completion's and the likeliest others."""


@dataclasses.dataclass(frozen=True, eq=False)
class Verified:
  """A completion that a search found and the verifier called right: `nodes` of its tree."""

  problem: Problem
  prompt: np.ndarray  # [P] int32
  tokens: np.ndarray  # [H] int32
  tree: Record
  nodes: list[int]  # [H]


class Target(NamedTuple):
  """What to learn at the H states of a completion."""

  candidates: np.ndarray  # [H, A] int32, the completion's own token first; -1: none
  weights: np.ndarray  # [H, A + 1] float32, sums to 1; last the rest of the vocabulary


def target(completion: Verified, candidates: int = CANDIDATES) -> Target:
  """Equation (1) along one completion, A = `candidates`; what does not fit is the rest's."""
  tree, H = completion.tree, len(completion.tokens)
  right, _ = masses(tree)
  joint = np.exp(np.minimum(tree.prior, 0.0, dtype=np.float64)) * right
  tokens = np.full((H, candidates), -1, np.int32)
  weights = np.zeros((H, candidates + 1))
  for j, node in enumerate(completion.nodes):
    others = np.flatnonzero((tree.parent == tree.parent[node]) & (joint > 0.0))
    others = others[others != node]
    others = others[np.argsort(-joint[others], kind="stable")]
    kept = np.array([node, *others[: candidates - 1]])
    tokens[j, : len(kept)] = tree.token[kept]
    weights[j, : len(kept)] = joint[kept]
    weights[j, -1] = joint[others[candidates - 1 :]].sum()
  return Target(tokens, (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32))
