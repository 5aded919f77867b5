"""Edges of several tokens and dives to the end: what they make are nodes like any other."""

import dataclasses

import jax
import numpy as np
import pytest
from tables import VerdictRules, bare_game, paths, search, table, table_rules, weights

from jaxzero.search.config import TreeConfig

ROWS, V, C = 32, 6, 7
DELIMITERS = (4,)
PLAIN = TreeConfig(order="gumbel", num_simulations=16, num_candidates=V, max_considered=4)
# `fork_threshold` below the mean of the likeliest token's probability: many runs.
RUNS = dataclasses.replace(PLAIN, max_run=3, fork_threshold=0.5, num_nodes=40)
DIVES = dataclasses.replace(PLAIN, rollout=True, num_nodes=70)


def think(config, seed=0, settings=None):
  keys = jax.random.split(jax.random.key(seed), 4)
  game, net = bare_game(keys[0], V, C, ROWS), table(keys[1], V)
  rules = table_rules(keys[2], V, ends=0.15, kind=VerdictRules)
  gumbel = jax.random.gumbel(keys[3], (ROWS, V))
  arguments = (game, net, config, gumbel, rules, game.judge, settings or weights())
  return jax.device_get(search(*arguments, delimiters=DELIMITERS))


def simulations(tree, row, size, goes_on):
  """The chains of new nodes, one a simulation: (first, last)."""
  chains, start = [], 1
  for node in range(1, size):
    if not goes_on(node):
      chains.append((start, node))
      start = node + 1
  assert start == size or size == tree.parent.shape[1], "a chain is only cut where the tree is full"
  return chains


def test_without_forced_tokens_or_with_runs_of_one_it_is_the_plain_search():
  plain = think(PLAIN)
  for change in ({"fork_threshold": 1.1, "max_run": 3}, {"fork_threshold": 0.0, "max_run": 1}):
    jax.tree.map(np.testing.assert_array_equal, think(dataclasses.replace(PLAIN, **change)), plain)


def test_an_edge_is_a_run_of_forced_tokens_up_to_the_next_fork_or_delimiter():
  out = think(RUNS)
  tree, lengths = out.tree, []
  for row in range(ROWS):
    size, start = out.nodes[row] + 1, {0: 0}
    for node in range(1, size):
      parent = tree.parent[row, node]
      start[node] = start[parent] if tree.forced[row, parent] else node
      top = np.exp(tree.prior_logits[row, node, 0])
      assert tree.forced[row, node] == (
        top >= RUNS.fork_threshold
        and tree.token[row, node] not in DELIMITERS
        and not tree.terminal[row, node]
        and node - start[node] + 1 < RUNS.max_run
        and node < RUNS.num_nodes
      )
      if tree.forced[row, node]:
        assert tree.children[row, node].tolist() == [node + 1, *[-1] * (V - 1)]
        assert tree.visits[row, node + 1] == tree.visits[row, node]
      lengths.append(node - start[node] + 1)
    chains = simulations(tree, row, size, lambda node, row=row: tree.forced[row, node])
    assert tree.visits[row, 0] - 1 == out.visit_counts[row].sum() >= len(chains)
  assert max(lengths) == RUNS.max_run
  assert (out.nodes > PLAIN.num_simulations).any(), "runs make more nodes than simulations"


@pytest.mark.parametrize("max_run", [1, 3])
def test_every_dive_ends_and_its_nodes_stay(max_run):
  config = dataclasses.replace(DIVES, max_run=max_run, fork_threshold=0.5)
  out = think(config)
  tree = out.tree
  assert out.nodes.min() < config.num_nodes, "some trees are not full"
  branching = 0
  for row in range(ROWS):
    size = out.nodes[row] + 1
    visited = paths(tree, row, size)
    assert len(set(visited)) == len(visited), "no sequence twice"
    chains = simulations(tree, row, size, lambda node, row=row: not tree.terminal[row, node])
    for first, last in chains:
      for node in range(first, last):
        assert tree.parent[row, node + 1] == node and tree.action[row, node + 1] == 0
    branching += sum((children >= 0).sum() > 1 for children in tree.children[row, 1:size])
    if size <= config.num_nodes:
      assert out.visit_counts[row].sum() == config.num_simulations
  assert branching > ROWS, "dives are searched below the root, too"


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_a_leaf_is_worth_the_mixture_of_its_dives_outcome_and_the_value_head(weight):
  out = think(DIVES, settings=weights(rollout_weight=weight))
  tree, mixed = out.tree, 0
  for row in range(ROWS):
    size = out.nodes[row] + 1
    if size > DIVES.num_nodes:
      continue
    total, count = float(tree.raw_value[row, 0]), 1
    chains = simulations(tree, row, size, lambda node, row=row: not tree.terminal[row, node])
    for first, last in chains:
      outcome = float(tree.right[row, last])
      guess = outcome if first == last else float(tree.raw_value[row, first])
      again = tree.visits[row, last] - 1
      total += weight * outcome + (1 - weight) * guess + again * outcome
      count += 1 + again
      mixed += first < last
    assert count == tree.visits[row, 0] == 1 + DIVES.num_simulations
    np.testing.assert_allclose(out.root_value[row], total / count, atol=1e-5)
  assert mixed > ROWS
