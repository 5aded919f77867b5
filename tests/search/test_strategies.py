"""Strategies on a budget: a cap for all of them, spent to the end by those that may verify."""

import collections
import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxzero.errors import UserError
from jaxzero.models.transformer import PolicyValueTransformer
from jaxzero.search import tries
from jaxzero.search.choose import Choice
from jaxzero.search.config import Lanes
from jaxzero.search.engine import Engine
from jaxzero.search.request import TRIES
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


@pytest.fixture(scope="module")
def meter(engine1, quick_compiles):
  """An engine, and what goes through its model: the positions that write to a row's own slots (what
  waits writes to the spare one; prompts are not counted), and each problem's decoded tokens."""
  written, decoded, extend = [], collections.Counter(), PolicyValueTransformer.extend

  def counting(self, layers, cache, tokens, positions, slot, mask, view=None):
    if jnp.ndim(slot):
      moved = jnp.sum(slot != cache[0][0].shape[2] - 1)
      jax.debug.callback(lambda count: written.append(int(count)), moved)
    return extend(self, layers, cache, tokens, positions, slot, mask, view)

  class Metered(Engine):
    def decode(self, params, batch, *options):
      out = super().decode(params, batch, *options)
      for prompt, length in zip(batch["prompts"], out["length"], strict=True):
        decoded[tuple(prompt.tolist())] += int(length)
      return out

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(PolicyValueTransformer, "extend", counting)
    shape = engine1.max_prompt, engine1.max_tokens
    metered = Metered(engine1.model, engine1.tokenizer, engine1.task, engine1.mesh, *shape)
    yield metered, (written, decoded)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_strategy_exceeds_its_budget_and_every_verdict_is_true(think, meter, params, strategy):
  engine, (written, decoded) = meter
  for budget in (1, 13, 45):
    written.clear(), decoded.clear()
    results = think(strategy, budget, engine, params)
    jax.effects_barrier()
    asked = sum(result.forward_tokens for result in results)
    assert sum(result.flops for result in results) > engine.flops(asked)
    if strategy in TRIES:  # decoded to their ends, and cut by the budget
      assert sum(written) == sum(decoded.values())
      prompts = engine.encode([result.problem for result in results], len(results))["prompts"]
      booked = [min(budget, decoded[tuple(prompt)]) for prompt in prompts.tolist()]
      assert [result.forward_tokens for result in results] == booked
    else:
      assert sum(written) == asked
    for result in results:
      assert 1 <= result.forward_tokens <= budget
      verdict = grade(engine.task, engine.tokenizer, result.problem, result.tokens)
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


def test_a_batch_shrinks_with_what_is_left_to_solve(engine1, params, problems, monkeypatch):
  """The answers are those of one size of batch, for fewer FLOPs."""
  rows, encode = [], Engine.encode
  monkeypatch.setattr(
    Engine, "encode", lambda self, some, n: (rows.append(n), encode(self, some, n))[1]
  )
  monkeypatch.setattr(tries, "_FEWEST", 2)
  shrunk = search(engine1, params, problems, "best_of_n", 90)
  assert rows[0] == 8 and rows == sorted(rows)[::-1] and {4} <= set(rows[1:]) <= {2, 4, 8}
  monkeypatch.setattr(tries, "_FEWEST", 8)
  whole = search(engine1, params, problems, "best_of_n", 90)
  assert key(whole) == key(shrunk)
  assert sum(r.flops for r in shrunk) < sum(r.flops for r in whole)


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
    ("beam", 10, {"lanes": Lanes(expansion=1025)}, "lanes.expansion=1025"),
    ("lookahead", 10, {"lanes": Lanes(steps_ahead=2**31)}, "lanes.steps_ahead=2147483648"),
  ],
)
def test_nonsense_is_refused(think, strategy, budget, options, says):
  with pytest.raises(UserError, match=says):
    think(strategy, budget, **options)
