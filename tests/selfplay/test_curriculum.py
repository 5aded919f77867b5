"""A round's problems: exactly those that the rule names, however they are batched."""

import dataclasses

import jax
import numpy as np
import pytest

from jaxzero.models.transformer import init_params
from jaxzero.search.engine import Engine
from jaxzero.search.foresee import foresee
from jaxzero.selfplay import curriculum
from jaxzero.selfplay.run import SelfPlayConfig, new_problems

CONFIG = SelfPlayConfig(episodes_per_round=6, batch_size=8, curriculum=True)


def plain_choice(success, count):
  """The same in words: those in the band as they come, then who is next to a half."""
  inside = [i for i, p in enumerate(success) if 0.2 <= p <= 0.8]
  outside = [i for i in range(len(success)) if i not in inside]
  outside.sort(key=lambda i: (abs(success[i] - 0.5), i))
  return sorted((inside + outside)[:count])


@pytest.mark.parametrize("seed", range(8))
def test_the_first_in_the_band_are_chosen_and_the_nearest_to_a_half_fill_up(seed):
  random = np.random.default_rng(seed)
  success = random.choice([0.01, 0.1, 0.2, 0.35, 0.5, 0.8, 0.9, 0.97], size=24).astype(np.float32)
  for count in (1, 6, 12, 24):
    assert curriculum.choose(success, count) == plain_choice(success, count)


def test_who_foresees_nothing_takes_problems_as_they_come():
  assert curriculum.choose(np.full(24, 0.5, np.float32), 6) == list(range(6))


@pytest.fixture(scope="module")
def engine(quick_compiles, tiny_model, tokenizer, task, mesh1):
  return Engine(tiny_model, tokenizer, task, mesh1, 16, 30)


@pytest.fixture(scope="module")
def params(tiny_model, tokenizer):
  params = init_params(tiny_model, tokenizer.vocab_size, jax.random.key(0))
  noise = np.random.default_rng(0).normal(size=params["value"].shape)
  return {**params, "value": np.float32(2.0 * noise)}


def test_a_round_plays_what_the_value_head_foresees_as_open(engine, params):
  chosen, positions = new_problems(engine, params, CONFIG, seed=3, round=2)
  drawn = [engine.task.problem("train", 3, 2 * 24 + i) for i in range(24)]
  success = [float(foresee(engine, params, [p], 8)[0][0]) for p in drawn]
  assert [p.id for p in chosen] == [drawn[i].id for i in plain_choice(success, 6)]
  assert chosen != drawn[:6], "it makes a difference"
  assert positions == 24 * 16, "three prefills of eight rows"


def test_it_depends_on_seed_round_and_parameters_alone(engine, params):
  one = new_problems(engine, params, CONFIG, 3, 2)[0]
  other_batches = dataclasses.replace(CONFIG, batch_size=5)
  assert one == new_problems(engine, params, other_batches, 3, 2)[0]
  assert one != new_problems(engine, params, CONFIG, 3, 3)[0]
  flipped = {**params, "value": -3.0 * params["value"]}
  assert one != new_problems(engine, flipped, CONFIG, 3, 2)[0]


def test_without_it_the_stream_is_played_as_it_comes_for_nothing(engine, params):
  plain = dataclasses.replace(CONFIG, curriculum=False)
  problems, positions = new_problems(engine, params, plain, 3, 2)
  assert problems == [engine.task.problem("train", 3, 12 + i) for i in range(6)]
  assert positions == 0
