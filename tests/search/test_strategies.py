"""Strategies on a budget: a cap for all of them, spent to the end by those that may verify."""

import dataclasses

import pytest

from jaxzero.errors import UserError
from jaxzero.search.choose import Choice
from jaxzero.search.strategies import STRATEGIES, search
from jaxzero.tasks.transcript import grade

TREES = ("shared_samples", "without_replacement", "best_first")
RANDOM = ("sample", "best_of_n", "shared_samples", "without_replacement", "mcts")


@pytest.fixture(scope="module")
def think(engine8, params8, problems, play_config):
  def results(strategy, budget, engine=engine8, params=params8, **options):
    options = {"play": play_config, **options}
    return search(engine, params, problems, strategy, budget, **options)

  return results


def key(results):
  return [(result.tokens, result.right, result.forward_tokens) for result in results]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_exceeds_its_budget_and_every_verdict_is_true(think, engine8, strategy):
  for budget in (1, 13, 45):
    results = think(strategy, budget)
    asked = sum(result.forward_tokens for result in results)
    assert sum(result.flops for result in results) > engine8.flops(asked)
    for result in results:
      assert 1 <= result.forward_tokens <= budget
      verdict = grade(engine8.task, engine8.tokenizer, result.problem, result.tokens)
      assert result.right == verdict.right
      assert budget > 1 or not result.right


@pytest.mark.parametrize("strategy", ["best_of_n", "beam", "mcts", *TREES])
def test_what_may_verify_goes_on_until_it_is_right_or_broke(think, strategy):
  budget = 64 if strategy in TREES else 150
  results = think(strategy, budget)
  # A policy that is sure samples what it has sampled: shared samples may end before the budget.
  assert strategy == "shared_samples" or all(
    result.right or result.forward_tokens == budget for result in results
  )
  assert all(result.right for result in results[:4])


@pytest.mark.parametrize("strategy", ["sample", "best_of_n", "beam", "mcts"])
def test_results_do_not_depend_on_the_batch(think, strategy):
  small, large = (key(think(strategy, 60, batch_size=size)) for size in (3, 8))
  assert small == large


@pytest.mark.parametrize("strategy", ["sample", "without_replacement", "beam"])
def test_results_depend_on_the_seed_where_they_are_drawn(think, strategy):
  first, again, other = (key(think(strategy, 60, seed=seed)) for seed in (1, 1, 2))
  assert first == again != other


@pytest.mark.parametrize("strategy", ["greedy", "best_first"])
def test_what_looks_best_does_not_depend_on_the_seed(think, strategy):
  assert key(think(strategy, 40, seed=1)) == key(think(strategy, 40, seed=2))


def test_mcts_takes_the_orders_along_paths_as_well(think, play_config):
  tree = dataclasses.replace(play_config.tree, order="best_first", depth_bonus=0.1)
  play = dataclasses.replace(play_config, tree=tree)
  assert key(think("mcts", 45, play=play)) == key(think("best_first", 45, play=play))


def test_nobody_asks_nothing(engine8, params8):
  assert search(engine8, params8, [], "greedy", 10) == []


@pytest.mark.parametrize(
  ("strategy", "budget", "options", "says"),
  [
    ("oracle", 10, {}, "'oracle'.*greedy, sample"),
    ("greedy", 0, {}, "budget=0"),
    ("mcts", -5, {}, "budget=-5"),
    ("mcts", 1_000_001, {}, "budget=1000001"),
    ("sample", 10, {"seed": -1}, "seed=-1"),
    ("sample", 10, {"seed": 2**31}, "seed=2147483648"),
    ("sample", 10, {"temperature": 0.0}, "temperature=0"),
    ("sample", 10, {"temperature": 101.0}, "temperature=101"),
    ("best_of_n", 10, {"samples": 0}, "samples=0"),
    ("best_first", 10, {"samples": 3}, "samples=3.*one tree"),
    ("sample", 10, {"batch_size": 0}, "batch_size=0"),
    ("best_of_n", 10, {"choice": Choice("value"), "verify_inside": True}, "score=value.*True"),
    ("mcts", 10, {"temperature": 0.5}, "order=gumbel"),
  ],
)
def test_nonsense_is_refused(think, strategy, budget, options, says):
  with pytest.raises(UserError, match=says):
    think(strategy, budget, **options)
