"""Search along paths against slow oracles: a heap, numpy, samples drawn one by one, enumeration."""

import collections
import dataclasses
import heapq
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tables
from tables import (
  TableRules,
  VerdictRules,
  bare_game,
  path_of,
  paths,
  row_keys,
  table,
  table_rules,
  weights,
)

from jaxzero.search import frontier as frontier_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.frontier import conditional_gumbels

ROWS, V, A, C = 8, 7, 4, 5
CONFIG = TreeConfig(order="best_first", num_simulations=30, num_candidates=A)


explore = jax.jit(tables.explore, static_argnames=("config", "stop"), compiler_options=tables.QUICK)


def case(seed, rows=ROWS, vocab=V, depth=C, kind=VerdictRules, ends=0.2):
  keys = jax.random.split(jax.random.key(seed), 4)
  return (
    bare_game(keys[0], vocab, depth, rows),
    table(keys[1], vocab),
    table_rules(keys[2], vocab, ends=ends, kind=kind),
    jax.random.gumbel(keys[3], (rows, vocab)),
  )


def run(case, config, settings=None, seed=0, limit=None, stop=False, noise=1.0):
  game, net, rules, gumbel = case
  rows = len(gumbel)
  limit = jnp.full(rows, config.capacity) if limit is None else jnp.asarray(limit)
  settings = settings or weights()
  return jax.device_get(
    explore(
      game, net, rules, config, noise * gumbel, row_keys(seed, rows), limit, settings, stop=stop
    )
  )


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("depth_bonus", [0.0, 1.0])
def test_best_first_visits_what_a_heap_would_and_nothing_twice(depth_bonus):
  made = case(11)
  game, net, rules, gumbel = made
  frontier, _, _ = run(made, CONFIG, weights(depth_bonus=depth_bonus))
  logits = log_softmax(net.logits)
  for row in range(ROWS):
    heap, visited = [], []

    def push(path, score, log_p, heap=heap):
      for token in np.argsort(-log_p)[:A]:
        heapq.heappush(heap, (-(score + log_p[token] + depth_bonus), (*path, int(token))))

    push((), 0.0, np.asarray(game.logits[row] + gumbel[row]))
    while heap and len(visited) < CONFIG.num_simulations:
      score, path = heapq.heappop(heap)
      visited.append(path)
      depth = (len(path) - 1) % len(logits)
      if not rules.ends[depth, path[-1]] and len(path) < C:
        push(path, -score, logits[depth, path[-1]])
    found = paths(frontier.tree, row, frontier.size[row])
    assert found == visited and len(set(found)) == len(found)


GUIDED = dataclasses.replace(CONFIG, order="guided")


def test_guided_without_weights_is_best_first():
  nothing = weights(regret_weight=0.0, value_weight=0.0, failure_weight=0.0)
  a, b = (run(case(12), config, nothing)[0] for config in (CONFIG, GUIDED))
  for name in ("size", "score", "best", "log_p", "ends", "first_end"):
    np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
  jax.tree.map(np.testing.assert_array_equal, a.tree, b.tree)


@pytest.mark.parametrize(
  ("value_weight", "failure_weight", "regret_weight"),
  [(0.7, 0.0, 0.0), (0.0, 1.5, 0.0), (0.0, 0.0, 0.6), (0.5, 0.8, 0.3)],
)
def test_guided_visits_what_a_slow_search_over_all_open_edges_would(
  value_weight, failure_weight, regret_weight
):
  made = case(13, ends=0.4)
  game, net, rules, gumbel = made
  frontier, _, _ = run(
    made,
    GUIDED,
    weights(value_weight=value_weight, failure_weight=failure_weight, regret_weight=regret_weight),
  )
  logits, values = log_softmax(net.logits), 1 / (1 + np.exp(-np.asarray(net.values, float)))
  plain, _, _ = run(made, GUIDED)
  differs = 0
  for row in range(ROWS):
    value = {(): float(game.value[row])}
    # The root counts its own estimate as one visit.
    wrong = {(): 1.0 - float(game.value[row])}
    edges = {}

    def push(path, score, log_p, edges=edges):
      for token in np.argsort(-log_p)[:A]:
        regret = regret_weight * log_p.max()
        edges[(*path, int(token))] = score + log_p[token] - regret + 0.1

    def priority(edge, value=value, wrong=wrong, edges=edges):
      parent = edge[:-1]
      guidance = value_weight * np.log(max(value[parent], 1e-6))
      return edges[edge] + guidance - failure_weight * np.log1p(wrong[parent])

    push((), 0.0, np.asarray(game.logits[row] + gumbel[row], float))
    visited = []
    while edges and len(visited) < GUIDED.num_simulations:
      path = max(edges, key=priority)
      score = edges.pop(path)
      visited.append(path)
      depth = (len(path) - 1) % len(logits)
      value[path], wrong[path] = values[depth, path[-1]], 0.0
      if not rules.ends[depth, path[-1]] and len(path) < C:
        push(path, score, logits[depth, path[-1]])
      elif not rules.rewards[depth, path[-1]] > 0:
        for cut in range(len(path)):
          wrong[path[:cut]] += 1.0
    assert paths(frontier.tree, row, frontier.size[row]) == visited
    differs += visited != paths(plain.tree, row, plain.size[row])
  assert differs > ROWS // 2, "the weights matter"


WITHOUT = TreeConfig(order="without_replacement", num_simulations=60, num_candidates=3)


def ended(frontier, row):
  """Paths of a row's ends, in the order in which they were met."""
  size = frontier.size[row]
  nodes = [node for node in range(1, size) if frontier.tree.terminal[row, node]]
  return [path_of(frontier.tree, row, node) for node in nodes]


@pytest.fixture(scope="module")
def one_game():
  """Thousands of rows that search the same game with other noise."""
  rows = 2048
  game, net, rules, _ = case(21, rows=rows, vocab=3, depth=3, ends=0.3)
  one = lambda x: jnp.broadcast_to(x[:1], x.shape)  # noqa: E731
  game = game.replace(logits=one(game.logits), value=one(game.value))
  logits = log_softmax(net.logits)

  def probability(path):
    log_p = np.asarray(game.logits[0], float)[path[0]]
    for depth, (before, token) in enumerate(itertools.pairwise(path)):
      log_p += logits[depth, before, token]
    return np.exp(log_p)

  def complete(path):
    over = [rules.ends[depth, token] for depth, token in enumerate(path)]
    return not any(over[:-1]) and (over[-1] or len(path) == 3)

  everything = itertools.chain(*(itertools.product(range(3), repeat=n) for n in (1, 2, 3)))
  ends = {path: probability(path) for path in everything if complete(path)}
  assert len(ends) > 6 and abs(sum(ends.values()) - 1) < 1e-5
  gumbel = jax.random.gumbel(jax.random.key(5), (rows, 3))
  return (game, net, rules, gumbel), ends


def assert_distributed(draws, expected):
  """Pearson's chi-square statistic within 5 standard deviations of its mean."""
  total, statistic, cells = len(draws), 0.0, 0
  counts = {path: 0 for path in expected}
  for draw in draws:
    counts[draw] += 1
  for path, p in expected.items():
    if total * p >= 5:
      statistic += (counts[path] - total * p) ** 2 / (total * p)
      cells += 1
  assert cells > 4
  assert statistic < cells + 5 * np.sqrt(2 * cells), (statistic, cells)


def test_samples_without_replacement_are_what_their_name_says(one_game):
  made, ends = one_game
  frontier, _, is_open = run(made, WITHOUT)
  assert not is_open.any(), "a tree that holds everything stops"
  rows = [ended(frontier, row) for row in range(len(frontier.size))]
  for row in rows:
    assert sorted(row) == sorted(ends), "every end once"
  assert_distributed([row[0] for row in rows], ends)
  pairs = {(a, b): ends[a] * ends[b] / (1 - ends[a]) for a, b in itertools.permutations(ends, 2)}
  assert_distributed([(row[0], row[1]) for row in rows], pairs)


def test_ends_come_in_the_order_of_their_perturbed_log_probabilities(one_game):
  """They are a Gumbel-top-k of the ends: no edge scores above one that was taken before it."""
  made, ends = one_game
  frontier, tops, _ = run(made, WITHOUT)
  steps = tops[:, :200]
  for row in range(steps.shape[1]):
    size = frontier.size[row]
    taken = steps[: size - 1, row]
    assert np.isfinite(taken).all() and (np.diff(taken) <= 1e-5).all()
    nodes = np.arange(1, size)[frontier.tree.terminal[row, 1:size]]
    scores = taken[nodes - 1]
    assert (np.diff(scores) <= 1e-5).all()
  log_p = frontier.log_p[0]
  for node in range(1, frontier.size[0]):
    if frontier.tree.terminal[0, node]:
      path = path_of(frontier.tree, 0, node)
      np.testing.assert_allclose(np.exp(log_p[node]), ends[path], rtol=1e-4)


def test_conditional_gumbels_have_the_given_maximum_and_the_order_of_free_ones():
  random = np.random.default_rng(0)
  log_p = np.log(random.dirichlet(np.full(6, 0.2), 500) + 1e-30).astype(np.float32)
  top = random.normal(scale=5.0, size=(500, 1)).astype(np.float32)
  gumbel = random.gumbel(size=log_p.shape).astype(np.float32)
  out = np.asarray(conditional_gumbels(top, log_p, gumbel))
  np.testing.assert_array_equal(out.max(axis=1), top[:, 0])
  np.testing.assert_array_equal(out.argmax(axis=1), (log_p + gumbel).argmax(axis=1))
  free = log_p.astype(float) + gumbel
  largest = free.max(axis=1, keepdims=True)
  exact = -np.log(np.exp(-top.astype(float)) - np.exp(-largest) + np.exp(-free))
  np.testing.assert_allclose(out, exact, rtol=1e-4, atol=1e-3)


SHARED = TreeConfig(order="shared_samples", num_simulations=40, num_candidates=3)


def test_shared_samples_pay_for_the_union_of_their_prefixes():
  """Every row draws its samples one by one, and pays for the prefixes that are new."""
  rows = 12
  made = case(31, rows=rows, vocab=3, depth=4, ends=0.3)
  game, net, rules, _ = made
  limit = np.linspace(0, 40, rows).astype(np.int32)
  frontier, _, _ = run(made, SHARED, limit=limit, noise=0.0)
  keys, depths = row_keys(0, rows), game.completion.shape[1]
  logits = np.asarray(jax.nn.log_softmax(net.logits))
  repeated = 0
  for row in range(rows):
    union, sample = [], 0
    while len(union) < min(limit[row], 40) and sample < limit[row] + 1:
      path, over = (), False
      while not over and len(union) < limit[row]:
        number = jnp.array([sample * (depths + 1) + len(path)])
        log_p = logits[(len(path) - 1) % 3, path[-1]] if path else np.asarray(game.logits[row])
        candidates = np.argsort(-log_p, kind="stable")
        noise = np.asarray(frontier_lib._noise(keys[row][None], number, 3))[0]
        path = (*path, int(candidates[np.argmax(log_p[candidates] + noise)]))
        over = bool(rules.ends[(len(path) - 1) % 3, path[-1]]) or len(path) == depths
        if path in union:
          repeated += over
        else:
          union.append(path)
      sample += 1
    assert paths(frontier.tree, row, frontier.size[row]) == union
  assert repeated, "some samples cost nothing"


def test_a_tree_of_so_many_samples_counts_each_as_often_as_it_was_drawn():
  rows, most = 12, 6
  made = case(31, rows=rows, vocab=3, depth=4, ends=0.3)
  game, net, rules, _ = made
  config = dataclasses.replace(SHARED, num_simulations=24, num_samples=most)
  frontier, _, is_open = run(made, config, noise=0.0)
  assert not is_open.any() and (frontier.samples == most).all()
  keys, logits, repeated = row_keys(0, rows), np.asarray(jax.nn.log_softmax(net.logits)), 0
  for row in range(rows):
    passed, won, ends = collections.Counter(), collections.Counter(), collections.Counter()
    for sample in range(most):
      path, over = (), False
      while not over:
        log_p = logits[(len(path) - 1) % 3, path[-1]] if path else np.asarray(game.logits[row])
        candidates = np.argsort(-log_p, kind="stable")
        number = jnp.array([sample * 5 + len(path)])
        noise = np.asarray(frontier_lib._noise(keys[row][None], number, 3))[0]
        path = (*path, int(candidates[np.argmax(log_p[candidates] + noise)]))
        over = bool(rules.ends[(len(path) - 1) % 3, path[-1]]) or len(path) == 4
      ends[path] += 1
      right = float(rules.rewards[(len(path) - 1) % 3, path[-1]]) > 0
      for depth in range(1, len(path) + 1):
        passed[path[:depth]] += 1
        won[path[:depth]] += right
    repeated += most - len(ends)
    tree, size = frontier.tree, frontier.size[row]
    assert set(paths(tree, row, size)) == set(passed)
    for node in range(1, size):
      path = path_of(tree, row, node)
      assert tree.visits[row, node] == passed[path] and tree.terminal[row, node] == (path in ends)
      mean = tree.reward[row, node] if path in ends else tree.value[row, node]
      np.testing.assert_allclose(mean, won[path] / passed[path], atol=1e-6)
    assert tree.visits[row, 0] == 1 + most, "its own estimate is one"
  assert repeated


def test_the_first_shared_sample_follows_the_policy(one_game):
  made, ends = one_game
  config = dataclasses.replace(SHARED, num_simulations=8)
  frontier, _, _ = run(made, config, noise=0.0)
  assert_distributed([ended(frontier, row)[0] for row in range(len(frontier.size))], ends)


ORDERS = ("best_first", "guided", "without_replacement", "shared_samples")


@pytest.mark.parametrize("order", ORDERS)
def test_a_budget_is_a_cap_and_a_smaller_one_is_a_prefix(order):
  config = dataclasses.replace(CONFIG, order=order)
  limit = np.array([0, 1, 2, 5, 9, 17, 29, 30])
  whole, _, _ = run(case(41), config)
  capped, _, is_open = run(case(41), config, limit=limit)
  assert not is_open.any()
  np.testing.assert_array_equal(capped.size - 1, np.minimum(limit, whole.size - 1))
  for row in range(ROWS):
    size = capped.size[row]
    assert paths(capped.tree, row, size) == paths(whole.tree, row, size)
    assert (capped.tree.parent[row, size:] == -1).all(), "what is beyond was never written"


@pytest.mark.parametrize("order", ORDERS)
def test_a_search_stops_at_the_first_right_end_and_grows_nothing_below_ends(order):
  config = dataclasses.replace(CONFIG, order=order)
  made = case(46, ends=0.3)
  whole, _, _ = run(made, config)
  stopped, _, is_open = run(made, config, stop=True)
  assert (stopped.found > 0).any() and not (stopped.found > 0).all()
  for row in range(ROWS):
    size = stopped.size[row]
    assert paths(stopped.tree, row, size) == paths(whole.tree, row, size)
    right = np.flatnonzero(whole.tree.right[row])
    assert whole.found[row] == (right[0] if len(right) else 0)
    if len(right):
      assert stopped.found[row] == right[0] == size - 1 and not is_open[row]
    else:
      assert size == whole.size[row]
    terminal = np.flatnonzero(whole.tree.terminal[row])
    assert whole.ends[row] >= len(terminal) if order == "shared_samples" else True
    assert whole.first_end[row] == (terminal[0] if len(terminal) else 0)
    assert not np.isin(whole.tree.parent[row], terminal).any()


@pytest.mark.parametrize("order", ["best_first", "guided", "without_replacement"])
def test_with_enough_nodes_every_path_is_visited_once(order):
  """4 tokens, 3 deep: all there is, and each value is the mean verdict of the ends below."""
  vocab, depth = 4, 3
  config = TreeConfig(order=order, num_simulations=100, num_candidates=vocab)
  made = case(51, vocab=vocab, depth=depth, ends=0.25)
  rules = made[2]
  frontier, _, is_open = run(made, config, weights(value_weight=0.3, failure_weight=0.3))
  everything, layer = [], [()]
  for deep in range(depth):
    layer = [(*path, token) for path in layer for token in range(vocab)]
    everything += layer
    layer = [path for path in layer if not rules.ends[deep, path[-1]]]
  assert not is_open.any()
  for row in range(ROWS):
    size = frontier.size[row]
    found = paths(frontier.tree, row, size)
    assert sorted(found) == sorted(everything)
    for node in range(1, size):
      if frontier.tree.terminal[row, node]:
        continue
      path = found[node - 1]
      below = [
        i + 1
        for i, other in enumerate(found)
        if other[: len(path)] == path and frontier.tree.terminal[row, i + 1]
      ]
      mean = frontier.tree.right[row, below].mean()
      np.testing.assert_allclose(frontier.tree.value[row, node], mean, atol=1e-5)


def test_returns_of_rewards_and_discounts_reach_the_root():
  config = dataclasses.replace(CONFIG, order="best_first")
  frontier, _, _ = run(case(61, kind=TableRules), config)
  tree = frontier.tree
  for row in range(ROWS):
    total, count = tree.raw_value[row, 0], 1
    for node in np.flatnonzero(tree.terminal[row]):
      seen = tree.raw_value[row, node]
      while node > 0:
        seen = tree.reward[row, node] + tree.discount[row, node] * seen
        node = tree.parent[row, node]
      total, count = total + seen, count + 1
    np.testing.assert_allclose(tree.value[row, 0], total / count, atol=1e-5)
    assert tree.visits[row, 0] == count
