"""Soft targets of a tree against Bayes' rule done by enumerating its ends."""

import numpy as np
import pytest

from jaxzero.learn.lessons import right_ends
from jaxzero.learn.teacher import target
from jaxzero.search.record import RIGHT, Record, masses
from jaxzero.tasks.base import Problem

BRANCHES, DEPTH = 4, 3
PROMPT = np.array([1, 2], np.int32)


def random_tree(seed):
  """All paths of DEPTH tokens, each child with less than all of its parent's mass."""
  random = np.random.default_rng(seed)
  parent, token, prior, verdict, level = [-1], [0], [0.0], [-1], [0]
  for depth in range(DEPTH):
    level, above = [], level
    for node in above:
      share = random.dirichlet(np.ones(BRANCHES + 1))[:BRANCHES]
      for branch in range(BRANCHES):
        level.append(len(parent))
        parent.append(node)
        token.append(10 + branch)
        prior.append(np.log(share[branch]))
        verdict.append(int(random.integers(2)) if depth == DEPTH - 1 else -1)
  M = len(parent)
  return Record(
    parent=np.array(parent, np.int32),
    token=np.array(token, np.int32),
    prior=np.array(prior, np.float32),
    visits=np.ones(M, np.int32),
    value=np.zeros(M, np.float32),
    verdict=np.array(verdict, np.int8),
  )


def enumerated(tree):
  """{path of tokens: probability} of the right ends."""
  found = {}
  for end in np.flatnonzero(tree.verdict == RIGHT):
    path, log_p, node = (), 0.0, end
    while node > 0:
      path, log_p, node = (
        (int(tree.token[node]), *path),
        log_p + tree.prior[node],
        tree.parent[node],
      )
    found[path] = float(np.exp(log_p))
  return found


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("candidates", [2, BRANCHES, BRANCHES + 2])
def test_a_target_is_the_policy_given_that_it_ends_right(seed, candidates):
  tree = random_tree(seed)
  mass = enumerated(tree)
  ends = right_ends(Problem("p", "p"), PROMPT, tree)
  assert len(ends) == len(mass) > 0
  for one in ends:
    path = tuple(one.tokens.tolist())
    learned = target(one, candidates)
    np.testing.assert_array_equal(learned.candidates[:, 0], one.tokens)
    np.testing.assert_allclose(learned.weights.sum(axis=1), 1.0, atol=1e-6)
    for j in range(DEPTH):
      total = sum(p for other, p in mass.items() if other[:j] == path[:j])
      named = 0.0
      for token, weight in zip(learned.candidates[j], learned.weights[j], strict=False):
        below = sum(p for other, p in mass.items() if other[: j + 1] == (*path[:j], token))
        np.testing.assert_allclose(weight, below / total, atol=1e-5)
        named += below
      np.testing.assert_allclose(learned.weights[j, -1], 1 - named / total, atol=1e-5)
      kept = learned.candidates[j][learned.candidates[j] >= 0]
      assert len(set(kept.tolist())) == len(kept)


def test_known_mass_is_what_enumeration_says():
  tree = Record(
    parent=np.array([-1, 0, 0, 1, 1]),
    token=np.array([0, 7, 8, 7, 8]),
    prior=np.log(np.array([1.0, 0.5, 0.3, 0.6, 0.2], np.float32)),
    visits=np.ones(5, np.int32),
    value=np.zeros(5, np.float32),
    verdict=np.array([-1, -1, 0, 1, 0]),
  )
  right, wrong = masses(tree)
  np.testing.assert_allclose(right, [0.3, 0.6, 0, 1, 0], atol=1e-6)
  np.testing.assert_allclose(wrong, [0.3 + 0.1, 0.2, 1, 0, 1], atol=1e-6)
