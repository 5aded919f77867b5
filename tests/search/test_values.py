"""Search by values against stock mctx: the same visits, values and moves, in fewer forwards."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tables import (
  EndlessRules,
  TableRules,
  VerdictRules,
  bare_game,
  search,
  table,
  table_rules,
  weights,
)

from jaxzero.search.config import TreeConfig
from jaxzero.search.rounds import considered_visits, slots

ROWS, V = 64, 8
GUMBEL = TreeConfig(
  order="gumbel", num_simulations=26, num_candidates=V, max_considered=5, value_scale=1.0
)
CASES = {
  # Rewards and discounts on every edge; paths end at tables' ends and where room is out.
  "gumbel": (GUMBEL, TableRules, 5),
  # Some tokens are no candidates, values are rescaled, only ends are worth something.
  "verdicts": (
    dataclasses.replace(GUMBEL, num_candidates=6, max_considered=4, rescale_values=True),
    VerdictRules,
    4,
  ),
  # No end but the deepest that a tree may go.
  "endless": (GUMBEL, EndlessRules, 2),
  "puct": (dataclasses.replace(GUMBEL, order="puct"), TableRules, 5),
  "puct_verdicts": (dataclasses.replace(GUMBEL, order="puct"), VerdictRules, 3),
}


def think(config, rules, depth, seed, invalid_share=0.0, noise=1.0, stop=False):
  """One search of a random table game; every seed of a shape shares the compiled function."""
  keys = jax.random.split(jax.random.key(seed), 5)
  game = bare_game(keys[0], V, depth, ROWS)
  gumbel = noise * jax.random.gumbel(keys[1], (ROWS, V))
  invalid = None
  if config.parallel != "lazy":
    # Rows differ in how many moves are left to them, down to a single one.
    share = invalid_share * jnp.arange(ROWS)[:, None] / ROWS
    invalid = jax.random.uniform(keys[2], (ROWS, V)) < share
    invalid = invalid.at[:, 3].set(False)
  rules = table_rules(keys[3], V, kind=rules)
  net = table(keys[4], V)
  arguments = (game, net, config, gumbel, rules, game.judge, weights())
  return jax.device_get(search(*arguments, stop_when_found=stop, invalid=invalid))


def assert_same(ours, stock, atol):
  np.testing.assert_array_equal(ours.token, stock.token)
  np.testing.assert_array_equal(ours.candidates, stock.candidates)
  np.testing.assert_array_equal(ours.visit_counts, stock.visit_counts)
  np.testing.assert_allclose(ours.weights, stock.weights, atol=atol)
  np.testing.assert_allclose(ours.root_value, stock.root_value, atol=atol)


WAYS = {"gumbel": ("none", "exact"), "verdicts": ("none", "lazy")}


@pytest.mark.parametrize("case", CASES)
def test_every_way_to_search_is_stock_mctx(case):
  config, rules, depth = CASES[case]
  stock_config = dataclasses.replace(config, backend="mctx")
  for seed, invalid_share, noise in ((0, 0.0, 1.0), (1, 1.0, 1.0), (2, 0.5, 0.0)):
    stock = think(stock_config, rules, depth, seed, invalid_share, noise)
    assert (stock.visit_counts.sum(axis=1) == config.num_simulations).all()
    for way in WAYS.get(case, ("none",)):
      ours = dataclasses.replace(config, parallel=way)
      if way == "lazy" and invalid_share:
        continue
      out = think(ours, rules, depth, seed, invalid_share, noise)
      assert_same(out, stock, 1e-5)
      if way == "none":
        assert out.nodes.max() <= config.num_simulations
        assert rules is EndlessRules or out.nodes.min() < config.num_simulations
        continue
      assert out.nodes.max() <= slots(ours, way == "exact")
      if not invalid_share:
        assert_passes(ours, out)


def assert_passes(config, out):
  """A forward a pass; `lazy` puts no position in vain but those that the replay asks for."""
  schedule = considered_visits(config.max_considered, config.num_simulations)
  passes = len([*itertools.groupby(schedule)])
  if config.parallel == "exact":
    assert int(out.forwards) == passes
    assert int(out.positions) == passes * config.max_considered
    return
  asked = int(out.forwards) - passes
  assert 0 <= asked <= slots(config, False) - config.num_simulations
  assert int(out.positions) == config.num_simulations + asked


@pytest.mark.parametrize("rules", [TableRules, VerdictRules])
def test_every_value_is_the_mean_of_what_lies_below(rules):
  name = "gumbel" if rules is TableRules else "puct_verdicts"
  config, _, depth = CASES[name]
  tree = think(config, rules, depth, seed=3).tree
  checked = 0
  for row in range(ROWS):
    for node in range(config.num_simulations + 1):
      if tree.visits[row, node] == 0:
        continue
      children = tree.children[row, node]
      children = children[children >= 0]
      visits = tree.visits[row, children]
      if tree.terminal[row, node]:
        assert not len(children), "nothing grows below an end"
        continue
      assert tree.visits[row, node] == 1 + visits.sum()
      returns = tree.reward[row, children] + (
        tree.discount[row, children] * tree.value[row, children]
      )
      mean = (tree.raw_value[row, node] + (visits * returns).sum()) / tree.visits[row, node]
      np.testing.assert_allclose(tree.value[row, node], mean, atol=1e-5)
      checked += len(children) > 1
  assert checked > ROWS


def test_64_simulations_of_16_moves_are_15_passes_and_few_more_forwards():
  config = TreeConfig(order="gumbel", num_simulations=64, parallel="lazy")
  schedule = considered_visits(config.max_considered, config.num_simulations)
  assert len([*itertools.groupby(schedule)]) == 15
  keys = jax.random.split(jax.random.key(0), 3)
  game, net = bare_game(keys[0], 16, 30, ROWS), table(keys[1], 16)
  rules = table_rules(keys[2], 16, ends=0.05, kind=VerdictRules)
  gumbel = jax.random.gumbel(keys[1], (ROWS, 16))
  out = search(game, net, config, gumbel, rules, game.judge, weights())
  assert_passes(config, out)
  assert int(out.forwards) <= 15 + 16, out.forwards


def test_the_schedule_is_mctxs():
  from mctx._src.seq_halving import get_sequence_of_considered_visits

  for considered in (0, 1, 2, 3, 5, 8, 16):
    for simulations in (1, 2, 7, 26, 64, 100):
      ours = considered_visits(considered, simulations)
      assert ours == tuple(get_sequence_of_considered_visits(considered, simulations))


def test_a_tree_without_room_for_more_nodes_stops():
  config, rules, depth = CASES["gumbel"]
  out = think(dataclasses.replace(config, num_nodes=9), rules, depth, seed=4)
  finished = out.visit_counts.sum(axis=1) == config.num_simulations
  assert (out.nodes <= 9).all() and out.tree.parent.shape[1] == 10
  assert ((out.nodes == 9) | finished).all() and not finished.all()


def test_a_search_that_stops_when_it_has_found_is_the_start_of_one_that_does_not():
  config, rules, depth = CASES["verdicts"]
  whole, stopped = (think(config, rules, depth, seed=6, stop=stop) for stop in (False, True))
  np.testing.assert_array_equal(stopped.found.found, whole.found.found)
  np.testing.assert_array_equal(stopped.found.completion, whole.found.completion)
  found = whole.found.found
  assert found.any() and not found.all()
  for row in range(ROWS):
    size = stopped.nodes[row] + 1
    np.testing.assert_array_equal(stopped.tree.token[row, :size], whole.tree.token[row, :size])
    if found[row]:
      assert stopped.tree.right[row].sum() == 1 and stopped.tree.right[row, size - 1]
      assert stopped.nodes[row] <= whole.nodes[row]
    else:
      assert stopped.nodes[row] == whole.nodes[row]
  assert stopped.nodes[found].sum() < whole.nodes[found].sum()
