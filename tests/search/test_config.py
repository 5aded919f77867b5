"""Searches that cannot run are refused in a sentence with the number in it."""

import dataclasses

import pytest

from jaxzero.errors import UserError
from jaxzero.search.config import ORDERS, PATH_ORDERS, VALUE_ORDERS, TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.play import PlayConfig

VOCAB = 40


@pytest.mark.parametrize(
  ("change", "words"),
  [
    ({"num_candidates": 41}, "num_candidates=41.*40"),
    ({"num_candidates": 1}, "num_candidates=1 .*2"),
    ({"order": "gumbel", "max_considered": 17}, "max_considered=17.*num_candidates=16"),
    ({"order": "gumbel", "max_considered": 0}, "max_considered=0"),
    ({"order": "breadth"}, "breadth.*gumbel, puct"),
    ({"num_simulations": 0}, "num_simulations=0"),
    ({"num_simulations": 65_537}, "num_simulations=65537"),
    ({"num_nodes": 1}, "num_nodes=1"),
    ({"num_nodes": -3}, "num_nodes=-3"),
    ({"order": "puct", "max_run": 0}, "max_run=0"),
    ({"order": "puct", "rollout": True, "rollout_weight": 1.5}, "rollout_weight=1.5"),
    ({"order": "puct", "rollout": True, "rollout_weight": -0.1}, "rollout_weight=-0.1"),
    *[({"order": order, "rollout": True}, f"order={order}") for order in PATH_ORDERS],
    ({"order": "best_first", "max_run": 2}, "order=best_first"),
    ({"parallel": "always"}, "always.*none, exact, lazy"),
    *[
      ({"order": order, "parallel": "exact"}, "parallel=exact")
      for order in ORDERS
      if order != "gumbel"
    ],
    ({"order": "gumbel", "max_run": 2, "parallel": "lazy"}, "parallel=lazy"),
    ({"order": "gumbel", "rollout": True, "parallel": "lazy"}, "parallel=lazy"),
    ({"backend": "torch"}, "torch.*own, mctx"),
    ({"backend": "mctx"}, "backend=mctx"),
    ({"order": "gumbel", "backend": "mctx", "max_run": 2}, "backend=mctx"),
    ({"order": "puct", "backend": "mctx", "rollout": True}, "backend=mctx"),
  ],
)
def test_searches_that_cannot_run_are_refused(change, words):
  with pytest.raises(UserError, match=words):
    TreeConfig(**change).check(VOCAB)


def test_what_can_run_is_not_refused():
  for order in ORDERS:
    TreeConfig(order=order).check(VOCAB)
    TreeConfig(order=order).check(None)
  for order in VALUE_ORDERS:
    TreeConfig(order=order, max_run=8, rollout=True).check(VOCAB)
    TreeConfig(order=order, backend="mctx").check(VOCAB)
  for parallel in ("exact", "lazy"):
    TreeConfig(order="gumbel", parallel=parallel).check(VOCAB)


def test_episodes_that_cannot_be_played_are_refused():
  with pytest.raises(UserError, match="max_tokens=1"):
    PlayConfig(max_tokens=1).check(VOCAB)
  with pytest.raises(UserError, match="num_simulations=0"):
    PlayConfig(tree=TreeConfig(num_simulations=0)).check(VOCAB)


def test_what_does_not_change_the_program_does_not_compile_anew():
  tuned = TreeConfig(depth_bonus=0.3, value_weight=1.0, failure_weight=2.0, rollout_weight=0.5)
  assert tuned.static() == TreeConfig()
  assert dataclasses.replace(tuned, num_candidates=8).static() != TreeConfig()
  weights = make_weights(tuned, 0.7)
  assert {name: round(float(x), 5) for name, x in weights.items()} == {
    "temperature": 0.7,
    "depth_bonus": 0.3,
    "regret_weight": 0.5,
    "value_weight": 1.0,
    "failure_weight": 2.0,
    "rollout_weight": 0.5,
  }
