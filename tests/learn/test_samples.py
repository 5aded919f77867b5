"""Advantages and the clipped surrogate against plain numpy; what is learned of a group."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import tree_arrays

from jaxzero.learn import losses
from jaxzero.learn.losses import LossConfig
from jaxzero.learn.samples import SampleWindow, group, right_samples
from jaxzero.models.transformer import Output
from jaxzero.selfplay.episode import Episode

V, T = 11, 9
policy_gradient = jax.jit(losses.policy_gradient)
WORKED = [([1, 2], [3, 4])]


def episode(right=((3, 1), (4,)), wrong=((3, 2), (5, 6, 7)), drawn=None):
  """A group of samples; `drawn`: how often, where not once."""
  paths = [np.array(path, np.int32) for path in (*right, *wrong)]
  arrays = tree_arrays(*paths, right=paths[: len(right)])
  is_end = np.isin(np.arange(len(arrays["tree_parent"])), arrays["tree_parent"], invert=True)
  arrays["tree_verdict"] = np.where(is_end, np.maximum(arrays["tree_verdict"], 0), -1)
  arrays["tree_verdict"] = arrays["tree_verdict"].astype(np.int8)
  random = np.random.default_rng(0)
  arrays["tree_prior"] = np.log(random.random(len(is_end))).astype(np.float32)
  for path, count in (drawn or {}).items():
    node = 0
    for token in path:
      below = (arrays["tree_parent"] == node) & (arrays["tree_token"] == token)
      node = int(np.flatnonzero(below)[0])
    arrays["tree_visits"][node] = count
  harvested = paths[0] if right else np.array([], np.int32)
  return Episode(
    episode_id="0-0-0",
    problem_id="p",
    prompt="p",
    prompt_tokens=np.array([1, 2, 3], np.int32),
    tokens=paths[0],
    harvested=harvested,
    candidates=np.zeros((len(harvested), 2), np.int32),
    weights=np.zeros((len(harvested), 3), np.float32),
    values=np.zeros(len(harvested), np.float32),
    visit_counts=np.zeros((len(harvested), 2), np.int32),
    right=bool(right),
    truncated=False,
    forward_tokens=7,
    model_step=0,
    search={},
    **arrays,
  )


def tokens(samples):
  return [tuple(sample.completion.tolist()) for sample in samples]


@pytest.mark.parametrize("scale_by_std", [False, True])
def test_advantages_are_rewards_minus_the_mean_of_all_that_was_drawn(scale_by_std):
  drawn = {(4,): 3, (3, 2): 2}
  rewards = np.array([1, 1, 1, 1, 0, 0, 0])
  scale = rewards.std() if scale_by_std else 1.0
  expected = {(3, 1): 1, (4,): 3, (3, 2): -2, (5, 6, 7): -1}
  samples = group(episode(drawn=drawn), scale_by_std)
  assert set(tokens(samples)) == set(expected)
  for path, sample in zip(tokens(samples), samples, strict=True):
    each = (expected[path] > 0) - rewards.mean()
    np.testing.assert_allclose(sample.advantage, abs(expected[path]) * each / scale, rtol=1e-6)
    assert sample.weight == 0.0
  np.testing.assert_allclose(sum(sample.advantage for sample in samples), 0.0, atol=1e-6)


@pytest.mark.parametrize("made", [episode(wrong=()), episode(right=())])
def test_a_group_that_all_agrees_gives_nothing(made):
  assert group(made, False) == group(made, True) == []


def test_expert_iteration_learns_different_right_samples_and_no_more_than_asked():
  made = episode(drawn={(4,): 5})
  assert tokens(right_samples(made, 9)) == [(3, 1), (4,)]
  assert tokens(right_samples(made, 1)) == [(3, 1)]
  assert all(s.weight == 1.0 and s.advantage == 0.0 for s in right_samples(made, 9))
  assert right_samples(episode(right=()), 9) == []


def window(samples, batch_size=4, share=0.0, first_step=6):
  return SampleWindow(samples, WORKED, (0, 1), first_step, T, batch_size, share)


def test_rows_are_the_same_whoever_makes_them_and_every_sample_comes_once_an_epoch():
  samples = group(episode(), False)
  whole = window(samples, batch_size=8, share=0.25)
  seen = collections.Counter()
  for step in (6, 7):
    batch = whole.batch(step, range(8))
    parts = [whole.batch(step, rows) for rows in (range(3, 8), range(3))]
    for name in ("tokens", "advantage", "old_log_p", "hard_weight", "length"):
      made = np.concatenate([getattr(parts[1], name), getattr(parts[0], name)])
      np.testing.assert_array_equal(made, getattr(batch, name))
    assert (batch.hard_weight[:2].sum(axis=1) == 2).all() and not batch.hard_weight[2:].any()
    seen.update(tuple(row.tolist()) for row in batch.tokens[2:])
  assert sorted(seen.values()) == [3, 3, 3, 3]


@pytest.fixture(scope="module")
def batch():
  return window(group(episode(drawn={(4,): 3}), True)).batch(6, range(4))


@pytest.fixture(scope="module")
def logits():
  return np.random.default_rng(0).normal(scale=2.0, size=(4, T, V)).astype(np.float32)


def log_softmax(logits):
  logits = np.asarray(logits, np.float64)
  return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def test_the_clipped_surrogate_is_that_of_a_loop(batch, logits):
  log_p, total, cut = log_softmax(logits), 0.0, 0
  for b in range(4):
    P = 3
    for t in range(P - 1, batch.length[b] - 1):
      A = float(batch.advantage[b, t])
      ratio = np.exp(log_p[b, t, batch.tokens[b, t + 1]] - batch.old_log_p[b, t])
      clipped = min(max(ratio, 0.7), 1.3)
      total -= min(ratio * A, clipped * A)
      cut += clipped * A < ratio * A
      assert A != 0
  assert cut
  np.testing.assert_allclose(policy_gradient(logits, batch, 0.3), total, rtol=1e-5)


def test_at_the_policy_that_drew_them_the_gradient_is_reinforce(batch, logits):
  """Which is known in closed form: -A (one-hot of the token - probabilities)."""
  following = np.roll(batch.tokens, -1, axis=1)
  log_p = log_softmax(logits)
  old = np.take_along_axis(log_p, following[..., None], axis=-1)[..., 0].astype(np.float32)
  gradient = jax.jit(jax.grad(losses.policy_gradient))(logits, batch.replace(old_log_p=old), 0.2)
  reinforce = -batch.advantage[..., None] * (np.eye(V)[following] - np.exp(log_p))
  np.testing.assert_allclose(gradient, reinforce, atol=1e-5)
  assert np.abs(gradient).max() > 0.1


def test_without_a_sample_to_learn_from_there_is_no_gradient(logits):
  empty = window([]).batch(6, range(4))

  def loss(logits):
    output, divisors = Output(logits, jnp.zeros((4, T))), losses.weights(empty)
    return losses.total_loss(output, None, empty, divisors, LossConfig())[0]

  value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
  assert value == 0.0 and not np.asarray(gradient).any()


def test_parts_of_a_batch_divided_by_its_whole_weight_add_up_to_its_loss(batch, logits):
  config = LossConfig(kl_weight=0.1)

  @jax.jit
  def loss(batch, logits, divisors):
    output = Output(logits, jnp.zeros(logits.shape[:2]))
    return losses.total_loss(output, jnp.sin(logits), batch, divisors, config)[0]

  divisors = jax.jit(losses.weights)(batch)
  halves = [
    loss(jax.tree.map(lambda x, rows=rows: x[rows], batch), logits[rows], divisors)
    for rows in (slice(0, 2), slice(2, 4))
  ]
  np.testing.assert_allclose(sum(halves), loss(batch, logits, divisors), rtol=1e-5)
  targeted = (np.arange(T) >= 2) & (np.arange(T) < np.asarray(batch.length)[:, None] - 1)
  assert divisors["advantage"] == divisors["kl"] == targeted.sum()
