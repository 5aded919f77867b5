"""Every loss against a loop in numpy over the whole vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import tree_arrays

from jaxzero.errors import UserError
from jaxzero.learn import batch as batch_lib
from jaxzero.learn import losses
from jaxzero.learn.losses import LossConfig
from jaxzero.models.transformer import Output
from jaxzero.selfplay.episode import Episode

B, T, V, A = 6, 10, 13, 3


def episode(seed, right=True, truncated=False, length=5):
  """A game; one that was lost has a solution of another length beside it."""
  random = np.random.default_rng(seed)
  harvested = random.integers(V, size=length if right else 4).astype(np.int32)
  H = len(harvested)
  tokens = harvested if right else random.integers(V, size=length).astype(np.int32)
  return Episode(
    episode_id=f"0-0-{seed}",
    problem_id="1 2 = 3",
    prompt="1 2 = 3",
    prompt_tokens=random.integers(V, size=3).astype(np.int32),
    tokens=tokens,
    harvested=harvested,
    candidates=np.array([random.permutation(V)[:A] for _ in range(H)], np.int32),
    weights=random.dirichlet(np.ones(A + 1), H).astype(np.float32),
    values=np.zeros(H, np.float32),
    visit_counts=np.zeros((H, A), np.int32),
    right=right,
    truncated=truncated,
    forward_tokens=length,
    model_step=0,
    search={},
    **tree_arrays(tokens, harvested, right=[harvested]),
  )


LOST, WON = episode(0, right=False), episode(1, length=7)
CUT_OFF = episode(2, right=False, truncated=True)


@pytest.fixture(scope="module")
def arrays():
  """A lost, a won and a truncated game, a text, and the solutions of a lost game and a won one."""
  arrays = batch_lib.empty(B, T, A)
  batch_lib.put_episode(arrays, 0, LOST)
  batch_lib.put_episode(arrays, 1, WON, soft=True)
  batch_lib.put_episode(arrays, 2, CUT_OFF)
  batch_lib.put_text(arrays, 3, [1, 2], [3, 4, 5])
  batch_lib.put_solution(arrays, 4, LOST, soft=True)
  batch_lib.put_solution(arrays, 5, WON)
  return arrays


@pytest.fixture(scope="module")
def batch(arrays):
  return batch_lib.to_batch(arrays)


@pytest.fixture(scope="module")
def output():
  a, b = jax.random.split(jax.random.key(0))
  return Output(2 * jax.random.normal(a, (B, T, V)), jax.random.normal(b, (B, T)))


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_hard_cross_entropy_scores_the_next_token(batch, output):
  log_p, total = log_softmax(output.logits), 0.0
  for b in range(B):
    for t in range(T - 1):
      total -= batch.hard_weight[b, t] * log_p[b, t, batch.tokens[b, t + 1]]
  assert total > 0
  np.testing.assert_allclose(losses.hard_cross_entropy(output.logits, batch), total, rtol=1e-5)


def test_soft_cross_entropy_holds_the_rest_of_the_vocabulary_in_one_bucket(batch, output):
  p, total = np.exp(log_softmax(output.logits)), 0.0
  for b in range(B):
    for t in range(T):
      chosen = [c for c in batch.candidates[b, t] if c >= 0]
      rest = sum(p[b, t, v] for v in range(V) if v not in chosen)
      target = batch.soft_target[b, t]
      loss = -target[A] * np.log(rest) - sum(
        target[i] * np.log(p[b, t, c]) for i, c in enumerate(chosen)
      )
      total += batch.soft_weight[b, t] * loss
  assert total > 0
  np.testing.assert_allclose(losses.soft_cross_entropy(output.logits, batch), total, rtol=1e-5)


def test_soft_targets_are_met_exactly_where_the_gradient_vanishes(batch):
  """The policy that puts the target's mass on the candidates has no gradient left."""
  rows, steps = np.nonzero(batch.soft_weight)
  logits = np.zeros((B, T, V), np.float32)
  for b, t in zip(rows, steps, strict=True):
    target = batch.soft_target[b, t]
    logits[b, t] = np.log(target[A] / (V - A))
    logits[b, t, batch.candidates[b, t]] = np.log(target[:A])
  gradient = jax.grad(losses.soft_cross_entropy)(jnp.asarray(logits), batch)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


def test_value_cross_entropy_is_binary_and_to_its_target(batch, output):
  p = 1 / (1 + np.exp(-np.asarray(output.value_logits, np.float64)))
  target = np.asarray(batch.value_target, np.float64)
  loss = -target * np.log(p) - (1 - target) * np.log(1 - p)
  total = (batch.value_weight * loss).sum()
  assert total > 0 and {*target[:2][batch.value_weight[:2] > 0]} == {0.0, 1.0}
  np.testing.assert_allclose(
    losses.value_cross_entropy(output.value_logits, batch), total, rtol=1e-5
  )


def test_kl_is_zero_at_the_reference_and_positive_elsewhere(batch, output):
  reference = jnp.roll(output.logits, 1, axis=-1)
  at_home = losses.kl_to_reference(output.logits, output.logits, batch)
  gradient = jax.grad(losses.kl_to_reference)(output.logits, output.logits, batch)
  np.testing.assert_allclose(at_home, 0.0, atol=1e-5)
  np.testing.assert_allclose(gradient, 0.0, atol=1e-5)
  log_p, log_r = log_softmax(output.logits), log_softmax(reference)
  targeted = (batch.hard_weight + batch.soft_weight + batch.value_weight) > 0
  total = (np.exp(log_p) * (log_p - log_r)).sum(axis=-1)[targeted].sum()
  np.testing.assert_allclose(
    losses.kl_to_reference(output.logits, reference, batch), total, rtol=1e-5
  )


def test_what_lies_behind_the_end_changes_nothing(batch, output):
  config = LossConfig(kl_weight=0.1)
  divisors = losses.weights(batch)
  behind = np.arange(T) >= np.asarray(batch.length)[:, None]
  tokens = np.where(behind, 7, batch.tokens)
  logits = jnp.where(behind[..., None], 5.0 * output.logits[::-1], output.logits)
  value_logits = jnp.where(behind, 9.0, output.value_logits)
  a, _ = losses.total_loss(output, output.logits * 0, batch, divisors, config)
  b, _ = losses.total_loss(
    Output(logits, value_logits), logits * 0, batch.replace(tokens=tokens), divisors, config
  )
  np.testing.assert_allclose(a, b, rtol=1e-6)


def test_a_truncated_game_teaches_nothing(batch):
  for name in ("hard_weight", "soft_weight", "value_weight"):
    assert not getattr(batch, name)[2].any()
  assert batch.length[2] == 8, "it is still there to be read"


def moves(game, completion):
  """[T] bool: the positions that predict the completion's tokens."""
  index = np.arange(T) - (len(game.prompt_tokens) - 1)
  return (index >= 0) & (index < len(completion))


def test_what_each_kind_of_row_teaches(batch):
  nothing = np.zeros(T)
  for row, game, completion, hard, soft, value in (
    (0, LOST, LOST.tokens, 0, 0, 1),
    (1, WON, WON.tokens, 0, 1, 1),
    (2, CUT_OFF, CUT_OFF.tokens, 0, 0, 0),
    (4, LOST, LOST.harvested, 0, 1, 0),
    (5, WON, WON.harvested, 1, 0, 0),
  ):
    inside, P = moves(game, completion), len(game.prompt_tokens)
    np.testing.assert_array_equal(batch.hard_weight[row], inside * hard)
    np.testing.assert_array_equal(batch.soft_weight[row], inside * soft)
    # The value is learned at the last token's own position, too.
    valued = np.maximum(inside, np.roll(inside, 1)) * value
    np.testing.assert_array_equal(batch.value_weight[row], valued)
    np.testing.assert_array_equal(batch.value_target[row], valued * game.right)
    np.testing.assert_array_equal(batch.tokens[row, P : P + len(completion)], completion)
    assert batch.length[row] == P + len(completion)
    if soft:
      np.testing.assert_array_equal(batch.candidates[row][inside], game.candidates)
      np.testing.assert_array_equal(batch.soft_target[row][inside], game.weights)
    assert (batch.candidates[row][~inside] == -1).all()
  np.testing.assert_array_equal(batch.hard_weight[3], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
  np.testing.assert_array_equal(batch.soft_weight[3], nothing)
  np.testing.assert_array_equal(batch.value_weight[3], nothing)


def test_a_won_game_is_imitated_as_its_solution_is(batch):
  arrays = batch_lib.empty(1, T, A)
  batch_lib.put_episode(arrays, 0, WON)
  np.testing.assert_array_equal(arrays["hard_weight"][0], batch.hard_weight[5])
  np.testing.assert_array_equal(arrays["tokens"][0], batch.tokens[5])


def test_the_parts_add_up_and_a_zero_weight_drops_its_part(batch, output):
  divisors = losses.weights(batch)
  config = LossConfig(value_weight=0.3, kl_weight=0.2)
  loss, parts = losses.total_loss(output, output.logits * 0, batch, divisors, config)
  expected = parts["policy_loss"] + 0.3 * parts["value_loss"] + 0.2 * parts["kl"]
  np.testing.assert_allclose(loss, expected, rtol=1e-6)
  plain = dataclasses.replace(config, kl_weight=0.0, value_weight=0.0)
  loss, parts = losses.total_loss(output, None, batch, divisors, plain)
  assert loss == parts["policy_loss"] and "kl" not in parts


def test_an_empty_batch_has_a_loss_of_zero(output):
  empty = batch_lib.to_batch(batch_lib.empty(B, T, A))
  loss, _ = losses.total_loss(output, None, empty, losses.weights(empty), LossConfig())
  assert loss == 0.0


def test_an_example_that_does_not_fit_is_named():
  with pytest.raises(UserError, match=r"11 tokens.* of 10"):
    batch_lib.put_text(batch_lib.empty(1, T, A), 0, [1] * 5, [2] * 6)
