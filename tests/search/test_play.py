"""Whole episodes: every row on its own, every token counted, every record true."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from programs import Program

from jaxzero.errors import UserError
from jaxzero.models.transformer import bind
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search.engine import make_weights
from jaxzero.tasks.transcript import grade

ROWS = 8
EXACT = ("completion", "length", "finished", "right", "forward_tokens")


def keys(seed=0):
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), np.arange(ROWS))


@pytest.fixture(scope="module")
def batch(engine1, problems):
  return engine1.encode(problems, ROWS)


@pytest.fixture(scope="module")
def play(engine1, params, play_config):
  """Plays with verifying inside; one compiled function for all tests."""

  def played(batch, budget=1000, noise=1.0, temperature=1.0, seed=0):
    budget = np.broadcast_to(np.int32(budget), ROWS)
    return engine1.play(
      params, batch, keys(seed), budget, noise, temperature, play_config, True, False
    )

  return played


@pytest.fixture(scope="module")
def whole(play, batch):
  return play(batch)


@pytest.fixture(scope="module")
def forward(engine1, params):
  """log p(next token) [B, T, V] of whole sequences, without any cache."""

  @jax.jit
  def log_p(params, batch, completion):
    prompts, length = batch["prompts"], batch["prompt_length"]
    rows, P = prompts.shape
    index = jnp.arange(P + completion.shape[1]) - length[:, None]
    shifted = jnp.take_along_axis(completion, jnp.clip(index, 0, completion.shape[1] - 1), axis=1)
    padded = jnp.pad(prompts, ((0, 0), (0, completion.shape[1])))
    tokens = jnp.where(index >= 0, shifted, padded)
    T = tokens.shape[1]
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (rows, T, T))
    model = bind(engine1.model, engine1.tokenizer.vocab_size, params)
    logits = model(tokens, jnp.broadcast_to(jnp.arange(T), (rows, T)), mask).logits
    at = length[:, None] - 1 + jnp.arange(completion.shape[1])
    return jax.nn.log_softmax(jnp.take_along_axis(logits, at[..., None], axis=1))

  return lambda batch, completion: np.asarray(log_p(params, batch, completion))


def test_a_row_plays_alone_as_it_plays_in_company(play, batch, whole):
  for row in (0, 5):
    alone = {name: x.copy() for name, x in batch.items()}
    alone["prompt_length"][np.arange(ROWS) != row] = 0
    out = play(alone)
    for name in EXACT:
      np.testing.assert_array_equal(getattr(out, name)[row], getattr(whole, name)[row])
    for x, y in zip(jax.tree.leaves(out.moves), jax.tree.leaves(whole.moves), strict=True):
      np.testing.assert_allclose(x[row], y[row], atol=1e-5)
    assert not out.length[np.arange(ROWS) != row].any(), "an empty row never moves"
    assert not out.forward_tokens[np.arange(ROWS) != row].any()


@pytest.fixture(scope="module")
def compiled8(engine8, params8, batch, play_config):
  arrays = {
    **batch,
    "keys": np.asarray(jax.random.key_data(keys())),
    "budget": np.full(ROWS, 1000, np.int32),
    "noise": np.ones(ROWS, np.float32),
    "temperature": np.ones(ROWS, np.float32),
  }
  arrays = shard_batch(engine8.mesh, arrays)
  weights = make_weights(play_config.tree, 1.0)
  function = engine8._play(play_config, True, False, 0, 1)
  held = engine8.gather(params8)
  return function.lower(held, arrays, weights).compile(), held, arrays, weights


def test_eight_devices_play_the_games_of_one(compiled8, whole):
  compiled, *inputs = compiled8
  spread = compiled(*inputs)
  assert len(spread.completion.sharding.device_set) == 8
  for name in EXACT:
    np.testing.assert_array_equal(getattr(spread, name), getattr(whole, name))
  for x, y in zip(jax.tree.leaves(spread.moves), jax.tree.leaves(whole.moves), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-5)


def test_on_gathered_parameters_nothing_is_communicated(compiled8):
  program = Program(compiled8[0].as_text())
  assert program.loops and program.collectives == []


def test_the_budget_is_a_cap_and_every_token_is_counted(play, batch, play_config):
  N = play_config.tree.num_simulations
  for seed in range(3):
    budget = np.random.default_rng(seed).integers(0, 50, ROWS)
    out = play(batch, budget, seed=seed)
    assert (out.forward_tokens <= budget).all()
    searches = out.moves.searched.sum(axis=1)
    # An end that is met again costs nothing, so a search may take less than it may.
    assert (out.forward_tokens >= out.length + searches).all()
    assert (out.forward_tokens <= out.length + N * searches).all()
    assert (searches <= play_config.max_searches).all()
    stopped = ~out.finished & (out.length < play_config.max_tokens)
    assert (out.forward_tokens == budget)[stopped].all()


@pytest.fixture(scope="module")
def lost(engine1, batch):
  """Where each row's completion is known to be lost, [B, C] bool."""
  verifier = engine1._verifier

  @jax.jit
  def read(completion):
    def step(state, token):
      state = verifier.read(state, token)
      return state, verifier.lost(state)

    return jax.lax.scan(step, engine1.judge(batch["facts"]), completion.T)[1].T

  return lambda completion: np.asarray(read(completion))


def test_a_game_ends_with_its_end_token_or_where_it_is_lost(
  whole, play, batch, engine1, problems, lost
):
  short = play(batch, budget=9)
  assert whole.finished.any() and not short.finished.all()
  end = engine1.tokenizer.end_id
  for out in (short, whole):
    is_lost = lost(out.completion)
    for row, problem in enumerate(problems):
      length = out.length[row]
      tokens = out.completion[row, :length]
      over = is_lost[row, :length] | (tokens == end)
      assert out.finished[row] == over.any() and not over[:-1].any()
      verdict = grade(engine1.task, engine1.tokenizer, problem, tokens)
      assert out.right[row] == verdict.right
      if out.found.found[row]:
        found = out.found.completion[row, : out.found.length[row]]
        assert grade(engine1.task, engine1.tokenizer, problem, found).right
  assert whole.found.found.any()


def test_records_are_distributions_over_candidates_where_searched(whole, play_config):
  moves, searched = whole.moves, whole.moves.searched
  assert searched.any(axis=1).all()
  np.testing.assert_allclose(moves.weights.sum(axis=-1)[searched], 1.0, atol=1e-5)
  assert (moves.visit_counts.sum(axis=-1)[searched] == play_config.tree.num_simulations).all()
  played = (moves.candidates == whole.completion[..., None]).any(axis=-1)
  assert played[searched].all(), "the move is one of the candidates"
  assert (moves.candidates[~searched] == -1).all()
  for name in ("weights", "root_values", "visit_counts"):
    assert not getattr(moves, name)[~searched].any()
  assert not searched[np.arange(searched.shape[1]) >= whole.length[:, None]].any()


def test_forks_are_searched_and_forced_tokens_are_not(whole, batch, forward, play_config):
  log_p = forward(batch, whole.completion)
  fork = log_p.max(axis=-1) < np.log(play_config.tree.fork_threshold)
  inside = np.arange(fork.shape[1]) < whole.length[:, None]
  assert (fork & inside).any() and (~fork & inside).any()
  first = np.cumsum(fork & inside, axis=1) <= play_config.max_searches
  np.testing.assert_array_equal(whole.moves.searched, fork & inside & first)
  np.testing.assert_array_equal(
    log_p.argmax(axis=-1)[~fork & inside], whole.completion[~fork & inside]
  )


def test_without_noise_and_temperature_keys_do_not_matter(play, batch):
  a, b = (play(batch, noise=0.0, temperature=0.0, seed=seed) for seed in (0, 1))
  jax.tree.map(np.testing.assert_array_equal, a, b)
  c, d = (play(batch, seed=seed) for seed in (0, 1))
  assert not np.array_equal(c.completion, d.completion)


def test_greedy_decoding_is_the_argmax_of_a_full_forward(engine1, params, batch, forward, problems):
  out = engine1.decode(params, batch, keys(), 0.0)
  log_p = forward(batch, out["completion"])
  inside = np.arange(log_p.shape[1]) < out["length"][:, None]
  np.testing.assert_array_equal(log_p.argmax(axis=-1)[inside], out["completion"][inside])
  assert out["right"][:4].all(), "what was learned by heart is known"
  for row, problem in enumerate(problems):
    tokens = out["completion"][row, : out["length"][row]]
    assert out["right"][row] == grade(engine1.task, engine1.tokenizer, problem, tokens).right


def test_sampled_tokens_follow_the_policy(engine1, params, batch, forward):
  """How often one prompt's completion starts with the likeliest token, at temperature 2."""
  same = {name: np.repeat(x[4:5], ROWS, axis=0) for name, x in batch.items()}
  p = np.exp(forward(same, np.zeros((ROWS, 1), np.int32))[0, 0] / 2)
  p /= p.sum()
  starts = np.stack(
    [engine1.decode(params, same, keys(seed), 2.0)["completion"][:, 0] for seed in range(40)]
  )
  likeliest, n = p.max(), starts.size
  assert 0.2 < likeliest < 0.95
  deviation = np.sqrt(n * likeliest * (1 - likeliest))
  assert abs((starts == p.argmax()).sum() - n * likeliest) < 4 * deviation


def test_a_prompt_that_is_too_long_is_named(engine1, task):
  with pytest.raises(UserError, match=r"takes \d+ tokens.* of 16"):
    engine1.encode([task.parse("1000 2000 3000 = 6000")], 1)


def test_rows_are_rounded_up_to_the_mesh(engine8, engine1):
  assert [engine8.rows(n) for n in (1, 8, 9)] == [8, 8, 16]
  assert engine1.rows(3) == 3


def test_play_settings_are_checked(engine1, params, batch, play_config):
  wrong = dataclasses.replace(play_config, max_tokens=1)
  with pytest.raises(UserError, match="max_tokens=1"):
    engine1.play(params, batch, keys(), np.zeros(ROWS, np.int32), 0.0, 0.0, wrong, True, False)
