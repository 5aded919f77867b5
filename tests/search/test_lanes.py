"""Lanes: beams equal a plain-Python beam, cache rows their text, a budget is a cap."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import Program

from jaxzero.models.transformer import bind
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search.config import Lanes
from jaxzero.search.lanes import afford, spawn
from jaxzero.tasks.transcript import grade

pytestmark = pytest.mark.usefixtures("quick_compiles")
LANES = Lanes(width=8, expansion=4)
UNBOUND = 8 * 30
HOT = 1.5  # few lanes have equal texts


def keys_of(count, seed=0):
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), np.arange(count))


@pytest.fixture(scope="module")
def grown(engine8, params8, problems):
  """Searches in lanes of the eight problems, each with the key of its number."""
  held = engine8.gather(params8)

  def grow(strategy, budget=UNBOUND, count=8, temperature=1.0, lanes=LANES, inside=False, seed=0):
    B = len(problems)
    return engine8.lanes(
      held,
      engine8.encode(problems, B),
      keys_of(B, seed),
      np.full(B, budget, np.int32),
      np.int32(count) + np.zeros(B, np.int32),
      temperature,
      strategy,
      lanes,
      inside,
    )

  return grow


def texts(lines):
  return [
    [tuple(row[:n].tolist()) for row, n in zip(rows, lengths, strict=True)]
    for rows, lengths in zip(lines.completion, lines.length, strict=True)
  ]


def test_one_lane_at_temperature_0_is_greedy(grown, engine8, params8, problems):
  lines = grown("beam", budget=240, count=np.array([1] * 7 + [8]), temperature=0.0)
  greedy = engine8.decode(
    engine8.gather(params8), engine8.encode(problems, 8), keys_of(8), temperature=0.0
  )
  np.testing.assert_array_equal(lines.completion[:7, 0], greedy["completion"][:7])
  np.testing.assert_array_equal(lines.forward_tokens[:7], greedy["length"][:7])


def test_lanes_of_which_none_is_dropped_are_plain_samples(grown, engine8, params8, problems):
  lines = grown("beam", lanes=Lanes(width=8, expansion=1), temperature=0.4)
  held, batch = engine8.gather(params8), engine8.encode(problems, 8)
  samples = [
    engine8.decode(held, batch, jax.vmap(jax.random.fold_in)(keys_of(8), np.full(8, lane)), 0.4)
    for lane in range(8)
  ]
  whole = np.all([sample["finished"] for sample in samples], axis=0)
  assert whole.sum() >= 3, "a lane that is cut is given to another"
  for lane, sample in enumerate(samples):
    np.testing.assert_array_equal(lines.completion[whole, lane], sample["completion"][whole])


@pytest.fixture(scope="module")
def says(engine8, params, problems):
  """What the model says behind a text of problem b, recomputed: log-probabilities, P(right)."""
  model = bind(engine8.model, engine8.tokenizer.vocab_size, jax.tree.map(jnp.asarray, params))
  batch = engine8.encode(problems, 8)
  size = engine8.max_prompt + engine8.max_tokens
  mask = np.tril(np.ones((1, size, size), bool))

  @jax.jit
  def network(tokens, last):
    output = model(tokens, jnp.arange(size)[None], mask)
    logits, value = output.logits[0, last], output.value_logits[0, last]
    return jax.nn.log_softmax(logits), jax.nn.sigmoid(value)

  @functools.cache
  def read(b, text):
    n = int(batch["prompt_length"][b])
    tokens = np.zeros((1, size), np.int32)
    tokens[0, :n], tokens[0, n : n + len(text)] = batch["prompts"][b, :n], text
    return jax.device_get(network(tokens, n + len(text) - 1))

  return read


@pytest.fixture(scope="module")
def oracle(engine8, says):
  """The same searches in plain Python, every value recomputed from its text."""
  C, end, delimiters = engine8.max_tokens, engine8.tokenizer.end_id, engine8.delimiters
  noise = jax.jit(
    lambda b, lane, n: jax.random.gumbel(
      functools.reduce(jax.random.fold_in, (b, lane, n), jax.random.key(0)),
      (engine8.tokenizer.vocab_size,),
    )
  )

  def walk(b, lane, text, stream, room, steps, temperature=HOT):
    begin = len(text)
    while len(text) - begin < room:
      scores = says(b, text)[0] + temperature * noise(b, lane, stream * C + len(text))
      text = (*text, int(np.argmax(scores)))
      steps -= text[-1] in delimiters
      if text[-1] == end or steps == 0:
        break
    return text

  def rooms(order, texts, left):
    """All that the first lanes may need; the first has what is left in any case."""
    given, promised = {}, 0
    for lane in order:
      need = C - len(texts[lane])
      promised += need
      if promised <= left:
        given[lane] = need
      elif lane == order[0] and left:
        given[lane] = left
    return given

  def think(b, budget, count, group, expansion, ahead):
    texts, streams = [()] * count, [0] * count
    room = rooms(range(count), texts, budget)
    number, left, tied = 0, budget, False
    while room:
      number += 1
      for lane, most in room.items():
        text = walk(b, lane, texts[lane], streams[lane], most, 1)
        left -= len(text) - len(texts[lane])
        texts[lane] = text
      free = [lane for lane in sorted(room) if texts[lane][-1] != end]
      live = [lane for lane in free if texts[lane][-1] in delimiters and len(texts[lane]) < C]
      tested = {lane: texts[lane] for lane in live}
      if ahead and 2 * sum(C - len(texts[lane]) for lane in live) <= left:
        for lane in live:
          tested[lane] = walk(b, lane, texts[lane], 0, C - len(texts[lane]), ahead, 0.0)
          left -= len(tested[lane]) - len(texts[lane])
      order = []
      for begin in range(0, count, group):
        best = [lane for lane in live if begin <= lane < begin + group]
        best.sort(key=lambda lane: -says(b, tested[lane])[1])
        scores = [says(b, tested[lane])[1] for lane in best]
        tied |= any(np.diff(scores) > -1e-5)
        others = [lane for lane in free if begin <= lane < begin + group]
        stay = best[: max(1, len(others) // expansion)]
        spawned = [lane for lane in others if lane not in stay] if stay else []
        for i, lane in enumerate(spawned):
          texts[lane], streams[lane] = texts[stay[i % len(stay)]], number
        order += enumerate([*stay, *spawned])
      order = [lane for _, lane in sorted(order, key=lambda one: one[0])]
      room = rooms(order, texts, left) if order else {}
    return texts, budget - left, tied

  return think


@pytest.mark.parametrize(
  ("strategy", "budget", "lanes"),
  [
    ("beam", UNBOUND, LANES),
    ("beam", 97, Lanes(width=8, expansion=2)),
    ("dvts", UNBOUND, LANES),
    ("dvts", 151, LANES),
    ("lookahead", 2 * UNBOUND, LANES),
    ("lookahead", 4 * UNBOUND, Lanes(width=8, expansion=2, steps_ahead=2)),
  ],
)
def test_lanes_are_those_of_plain_python(grown, oracle, strategy, budget, lanes):
  lines = grown(strategy, budget=budget, lanes=lanes, temperature=HOT)
  compared = 0
  for b in range(8):
    group = lanes.group(strategy, 8)
    expected, spent, tied = oracle(b, budget, 8, group, lanes.expansion, lanes.ahead(strategy))
    if not tied:
      assert texts(lines)[b] == expected
      assert lines.forward_tokens[b] == spent <= budget
      compared += 1
  assert compared >= 4, "the last bit of a score decides between lanes of equal text"


def test_values_are_those_of_the_text_after_all_copying(grown, says):
  lines = grown("beam")
  for b, row in enumerate(texts(lines)):
    for lane, text in enumerate(row):
      expected = [says(b, text[: n + 1])[1] for n in range(len(text))]
      np.testing.assert_allclose(lines.values[b, lane, : len(text)], expected, atol=1e-5)


def test_every_subtree_of_dvts_keeps_a_line_of_its_own():
  score = np.float32([[[0.9, 0.8, 0.7, 0.6], [0.1, 0.4, 0.3, 0.2]]])
  every = np.ones((1, 2, 4), bool)
  source, rank = spawn(score, every, every, 4)
  np.testing.assert_array_equal(source, [[[0, 0, 0, 0], [1, 1, 1, 1]]])
  np.testing.assert_array_equal(rank, [[[0, 1, 2, 3], [1, 0, 2, 3]]])
  source, _ = spawn(score.reshape(1, 1, 8), every.reshape(1, 1, 8), every.reshape(1, 1, 8), 4)
  np.testing.assert_array_equal(source, [[[0, 1, 0, 1, 0, 1, 0, 1]]])


@pytest.mark.parametrize("seed", range(3))
def test_no_more_is_given_than_is_left(seed):
  rng = np.random.default_rng(seed)
  need, rank = rng.integers(1, 9, (50, 6)), rng.permuted(np.tile(np.arange(6), (50, 1)), axis=1)
  wanted, left = rng.random((50, 6)) < 0.7, rng.integers(0, 40, 50)
  room = np.asarray(afford(need, rank, wanted, left))
  assert np.all(room.sum(axis=1) <= left) and not np.any(room[~wanted])
  some = wanted.any(axis=1) & (left > 0)
  assert np.all(room[some].sum(axis=1) > 0)


def test_who_hears_the_verifier_stops_at_the_first_right_end(grown, engine8, problems):
  heard, alone = grown("beam", inside=True), grown("beam")
  right = heard.right.any(axis=1)
  assert right[:4].all() and not (heard.finished & ~heard.right).any()
  assert np.all(heard.forward_tokens[:4] < alone.forward_tokens[:4])
  for b, row in enumerate(texts(heard)):
    for lane, text in enumerate(row):
      verdict = grade(engine8.task, engine8.tokenizer, problems[b], text)
      assert verdict.right == heard.right[b, lane]


def test_a_token_copies_no_cache_and_nothing_is_communicated(engine8, params8, problems):
  batch = engine8.encode(problems, 8) | {
    "keys": np.asarray(jax.random.key_data(keys_of(8))),
    "budget": np.full(8, 240, np.int32),
    "count": np.full(8, 8, np.int32),
  }
  grow = engine8._grow(8, 8)
  lowered = grow.lower(
    engine8.gather(params8),
    shard_batch(engine8.mesh, batch),
    np.float32(1),
    np.int32(4),
    np.int32(1),
    np.True_,
  )
  text = lowered.compile().as_text()
  program, model = Program(text), engine8.model
  slots = engine8.max_prompt + engine8.max_tokens + 1
  cache = (8, model.num_kv_heads, slots, model.head_dim)
  assert program.innermost and not program.collectives
  assert not program.copies_in_loops(cache, innermost=True)
