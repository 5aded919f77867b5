"""Strategies on a budget: a cap for all of them, spent to the end by those that may verify."""

import pytest

from jaxzero.errors import UserError
from jaxzero.search.strategies import STRATEGIES, search
from jaxzero.tasks.transcript import grade


@pytest.fixture(scope="module")
def think(engine8, params8, problems, play_config):
  def results(strategy, budget, **options):
    return search(engine8, params8, problems, strategy, budget, play=play_config, **options)

  return results


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


@pytest.mark.parametrize("strategy", ["best_of_n", "mcts"])
def test_what_may_verify_goes_on_until_it_is_right_or_broke(think, strategy):
  results = think(strategy, 150)
  assert all(result.right or result.forward_tokens == 150 for result in results)
  assert all(result.right for result in results[:4])


@pytest.mark.parametrize("strategy", ["sample", "best_of_n", "mcts"])
def test_results_depend_on_the_seed_and_not_on_the_batch(think, strategy):
  def key(results):
    return [(result.tokens, result.right, result.forward_tokens) for result in results]

  small, large = (key(think(strategy, 60, batch_size=size)) for size in (3, 8))
  assert small == large
  assert key(think("sample", 60, seed=1)) != key(think("sample", 60, seed=2))


def test_nobody_asks_nothing(engine8, params8):
  assert search(engine8, params8, [], "greedy", 10) == []


@pytest.mark.parametrize(
  ("strategy", "budget", "says"),
  [
    ("oracle", 10, "'oracle'.*greedy, sample"),
    ("greedy", 0, "budget=0"),
    ("mcts", -5, "budget=-5"),
  ],
)
def test_nonsense_is_refused(think, strategy, budget, says):
  with pytest.raises(UserError, match=says):
    think(strategy, budget)


def test_best_of_n_needs_a_task_that_checks_itself(think, engine8, monkeypatch):
  monkeypatch.setattr(type(engine8.task), "self_checkable", False)
  with pytest.raises(UserError, match="answer key"):
    think("best_of_n", 50)
