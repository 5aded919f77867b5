"""Thinking with a process reward model beside the policy: what it scores, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from votes import plain

from jaxzero.models.transformer import bind, init_params
from jaxzero.search.choose import AGGREGATES, VOTES, Choice, end_tokens
from jaxzero.search.strategies import search
from jaxzero.tasks.transcript import encode_prompt

BUDGET = 480


@pytest.fixture(scope="module")
def scored(engine1, params, quick_compiles):
  """An engine with a random reward model, smaller than the policy, and both parameters."""
  shape = dataclasses.replace(engine1.model, num_layers=1, embed_dim=16)
  prm = init_params(shape, engine1.tokenizer.vocab_size, jax.random.key(3))
  prm["value"] = jax.random.normal(jax.random.key(4), prm["value"].shape)
  return engine1.scored(shape), {"policy": params, "prm": prm}


@pytest.fixture(scope="module")
def think(scored, problems):
  def results(strategy, budget=BUDGET, **options):
    options = {"choice": Choice(score="value"), **options}
    return search(*scored, problems, strategy, budget, **options)

  return results


@pytest.fixture(scope="module")
def samples(think):
  return think("best_of_n")


def test_greedy_is_greedy_with_a_reward_model_beside_it(think, engine1, params, problems):
  alone = search(engine1, params, problems, "greedy", engine1.longest)
  beside = think("greedy", 2 * engine1.longest)
  for a, b in zip(alone, beside, strict=True):
    assert a.tokens == b.tokens and b.forward_tokens == 2 * a.forward_tokens
    assert b.flops > a.flops


@pytest.mark.parametrize("strategy", ["sample", "majority", "best_first"])
@pytest.mark.parametrize("budget", [2, 31, 121])
def test_the_budget_is_a_cap_on_both_models_together(think, strategy, budget):
  for result in think(strategy, budget):
    assert 2 <= result.forward_tokens <= budget and result.forward_tokens % 2 == 0
    assert all(one.spent <= result.forward_tokens for one in result.finished)


@pytest.mark.parametrize("strategy", ["best_of_n", "best_first"])
def test_scores_are_the_reward_models_of_the_text_read_at_once(scored, think, strategy):
  engine, params = scored
  tokenizer, width = engine.tokenizer, engine.max_prompt + engine.max_tokens

  @jax.jit
  def values(params, tokens):
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((width, width), bool)), (1, width, width))
    model = bind(engine.scorer, tokenizer.vocab_size, params)
    return jax.nn.sigmoid(model(tokens, jnp.arange(width)[None], mask).value_logits[0])

  seen = 0
  for result in think(strategy, 120)[:4]:
    prompt = encode_prompt(tokenizer, result.problem)
    for one in result.finished:
      text = np.zeros((1, width), np.int32)
      text[0, : len(prompt) + len(one.tokens)] = [*prompt, *one.tokens]
      read = np.asarray(values(params["prm"], text))[len(prompt) :]
      ends = np.isin(one.tokens, end_tokens(tokenizer))
      np.testing.assert_allclose(one.scores, read[: len(ends)][ends], atol=1e-5)
      seen += 1
  assert seen >= 4


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("vote", VOTES)
def test_the_answer_is_what_the_choice_says_of_the_samples(think, samples, aggregate, vote):
  results = think("best_of_n", choice=Choice("value", aggregate, vote))
  for result, before in zip(results, samples, strict=True):
    assert result.finished == before.finished, "a choice changes no sample"
    if result.finished:
      pairs = [(one.answer, one.scores, one.log_p) for one in result.finished]
      assert result.tokens == result.finished[plain(pairs, aggregate, vote)].tokens
  assert sum(len(result.finished) > 1 for result in results) >= 4


def test_majority_is_the_majority_of_the_same_samples(think, samples):
  voted = think("majority", choice=Choice())
  by_vote = think("best_of_n", choice=Choice("value", vote="majority"))
  assert [r.tokens for r in voted] == [r.tokens for r in by_vote]
  assert [r.finished for r in voted] == [r.finished for r in samples]


def test_tries_are_capped(think):
  for result in think("best_of_n", samples=2):
    assert len(result.finished) <= 2 and result.forward_tokens < BUDGET
