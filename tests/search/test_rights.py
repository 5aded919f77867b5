"""Who may hear what: no answer key reaches a test-time search, and no verdict where it may not."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.search.choose import Choice
from jaxzero.search.engine import Engine
from jaxzero.search.strategies import STRATEGIES, search
from jaxzero.tasks import countdown_device
from jaxzero.tasks.base import TaskConfig
from jaxzero.tasks.countdown import Countdown
from jaxzero.tasks.transcript import grade


class Keyed(Countdown):
  """Countdown whose target counts only as the answer key says."""

  self_checkable = False

  def problem_array(self, problem):
    facts = super().problem_array(problem)
    facts[countdown_device.MAX_NUMBERS] = -1 if problem.key is None else int(problem.key)
    return facts

  def verify(self, problem, answer, steps=None):
    numbers = problem.id.split("=")[0]
    return super().verify(dataclasses.replace(problem, id=f"{numbers}= {problem.key}"), answer)


@pytest.fixture(scope="module")
def keyed(engine1):
  task = Keyed(TaskConfig(numbers=3, max_number=15))
  return Engine(
    engine1.model,
    engine1.tokenizer,
    task,
    engine1.mesh,
    engine1.max_prompt,
    engine1.max_tokens,
  )


def with_keys(problems, key_of):
  return [
    dataclasses.replace(problem, key=key_of(int(problem.id.split("=")[1]))) for problem in problems
  ]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_keys_change_no_token_of_any_strategy(keyed, params, problems, play_config, strategy):
  def think(key_of):
    asked = with_keys(problems, key_of)
    return search(keyed, params, asked, strategy, 64, play=play_config)

  true, other = think(str), think(lambda target: str(target + 1))
  for a, b in zip(true, other, strict=True):
    assert (a.tokens, a.forward_tokens, a.finished) == (b.tokens, b.forward_tokens, b.finished)
    assert not (a.right and b.right), "the host's verdict goes by the key"
    assert a.problem.key != b.problem.key
  assert any(result.right for result in true)


def test_with_its_key_the_device_would_have_known(keyed, problems):
  """The check above can fail: the array of a problem that keeps its key holds it."""
  (problem,) = with_keys(problems[:1], str)
  known, unknown = (
    keyed.encode([one], 1)["facts"] for one in (problem, dataclasses.replace(problem, key=None))
  )
  assert not np.array_equal(known, unknown)


@pytest.mark.parametrize("options", [{"verify_inside": True}, {"choice": Choice("verifier")}])
def test_who_asks_for_the_key_is_refused(keyed, params, problems, options):
  with pytest.raises(UserError, match="answer key"):
    search(keyed, params, problems, "best_of_n", 64, **options)


class Liar:
  """A verifier whose every word is false."""

  def __init__(self, verifier):
    self.verifier, self.state_size = verifier, verifier.state_size

  def start(self, problem_array):
    return self.verifier.start(problem_array)

  def read(self, state, token):
    return self.verifier.read(state, token)

  def lost(self, state):
    return ~self.verifier.lost(state)

  def right(self, state):
    return jnp.ones(state.shape[:-1], bool)


@pytest.mark.parametrize("strategy", ["best_of_n", "best_first", "mcts"])
def test_who_may_not_verify_inside_does_not_hear_the_verifier(
  engine1, params, task, problems, play_config, monkeypatch, strategy
):
  honest = Engine(engine1.model, engine1.tokenizer, task, engine1.mesh)
  true_verifier = type(task).device_verifier
  monkeypatch.setattr(
    type(task), "device_verifier", lambda self, tokenizer: Liar(true_verifier(self, tokenizer))
  )
  lying = Engine(engine1.model, engine1.tokenizer, task, engine1.mesh)
  a, b = (
    search(engine, params, problems, strategy, 60, play=play_config, verify_inside=False)
    for engine in (honest, lying)
  )
  assert [(r.tokens, r.forward_tokens) for r in a] == [(r.tokens, r.forward_tokens) for r in b]
  assert all(r.forward_tokens == 60 or strategy != "best_first" for r in a)
  for result in a:
    verdict = grade(task, engine1.tokenizer, result.problem, result.tokens)
    assert result.right == verdict.right
