"""The train step: one result however it is split, and a loss that goes down."""

import dataclasses

import jax
import numpy as np
import pytest
from batches import ROWS, VOCAB, A, T, mixed_batch

from jaxzero.errors import UserError
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.losses import LossConfig
from jaxzero.learn.supervised import Examples
from jaxzero.learn.train import OptimizerConfig, Trainer, TrainState
from jaxzero.parallel.sharding import shard_batch

STEPS = 3
OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=1)
LOSS = LossConfig()


def trainer(model, mesh, loss=LOSS, steps=STEPS, **options):
  return Trainer(model, VOCAB, OPTIMIZER, loss, mesh, steps, **options)


def run(trainer, batches, reference=None):
  state, metrics = trainer.init(jax.random.key(0)), []
  for batch in batches:
    state, row = trainer.train_step(state, shard_batch(trainer.mesh, batch), reference)
    metrics.append(jax.device_get(row))
  return state, metrics


@pytest.fixture(scope="module")
def trainer1(tiny_model, mesh1):
  return trainer(tiny_model, mesh1)


@pytest.fixture(scope="module")
def batches():
  return [mixed_batch(seed) for seed in range(STEPS)]


@pytest.fixture(scope="module")
def alone(trainer1, batches):
  return run(trainer1, batches)


@pytest.fixture(scope="module")
def spread(tiny_model, mesh8, batches):
  return run(trainer(tiny_model, mesh8), batches)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def test_eight_devices_train_the_model_of_one(alone, spread):
  assert_close(spread[1], alone[1])
  assert_close(jax.device_get(spread[0].params), jax.device_get(alone[0].params), 1e-4, 1e-5)
  assert int(spread[0].step) == int(alone[0].step) == STEPS


def test_the_model_is_the_average_of_the_steps_taken(tiny_model, mesh1, alone, batches):
  averaging = dataclasses.replace(OPTIMIZER, average_steps=4)
  averager = Trainer(tiny_model, VOCAB, averaging, LOSS, mesh1, STEPS)
  state = averager.init(jax.random.key(0))
  average = jax.device_get(state.params)
  for batch in batches:
    state, _ = averager.train_step(state, shard_batch(mesh1, batch))
    moved = jax.device_get(state.iterate)
    average = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, average, moved)
  assert_close(jax.device_get(state.params), average)
  assert_close(moved, jax.device_get(alone[0].params))


def test_moments_are_sharded_like_their_parameters(spread):
  state = spread[0]
  specs = jax.tree.map(lambda x: x.sharding.spec, state.params)
  assert any(any(spec) for spec in jax.tree.leaves(specs))
  adam = next(s for s in jax.tree.leaves(state.optimizer, is_leaf=is_adam) if is_adam(s))
  for moments in (adam.mu, adam.nu):
    assert jax.tree.map(lambda x: x.sharding.spec, moments) == specs
  assert adam.count.sharding.is_fully_replicated


def is_adam(x):
  return hasattr(x, "mu") and hasattr(x, "nu")


@pytest.mark.parametrize("mesh", ["mesh1", "mesh8"])
def test_micro_batches_are_exact(tiny_model, alone, batches, mesh, request):
  mesh = request.getfixturevalue(mesh)
  micro_batches = 4 if mesh.size == 1 else 2
  state, metrics = run(trainer(tiny_model, mesh, micro_batches=micro_batches), batches)
  assert_close(metrics, alone[1])
  # Adam divides by the root of the second moment: a gradient of 1e-9 is a step like any other.
  assert_close(jax.device_get(state.params), jax.device_get(alone[0].params), 1e-4, 1e-5)


def test_micro_batches_have_the_gradient_norm_of_the_whole(tiny_model, mesh1, batches):
  whole, parts = (trainer(tiny_model, mesh1, micro_batches=n) for n in (1, 4))
  start = jax.device_get(whole.init(jax.random.key(0)).params)
  a, b = (
    t.train_step(t.fresh_optimizer(start), batches[1])[1]["grad_norm"] for t in (whole, parts)
  )
  np.testing.assert_allclose(a, b, rtol=1e-6)


def test_padding_and_order_of_rows_do_not_change_the_loss(trainer1, batches):
  batch = batches[0]
  padded = np.where(np.arange(T) < batch.length[:, None], batch.tokens, 9)
  reversed_rows = jax.tree.map(lambda x: np.asarray(x)[::-1].copy(), batch)
  variants = [batch, batch.replace(tokens=padded), reversed_rows]
  losses = [run(trainer1, [variant])[1][0] for variant in variants]
  assert_close(losses[1], losses[0])
  assert_close(losses[2], losses[0])


def test_a_batch_is_learned_by_heart(tiny_model, mesh1):
  texts = [([1, 2 + i], [10 + (7 * i * j) % 50 for j in range(1, 8)]) for i in range(ROWS)]
  batch = Examples(texts, T, A, seed=0).batch(0, ROWS)
  steps = 60
  optimizer = dataclasses.replace(OPTIMIZER, learning_rate=1e-2)
  learner = Trainer(tiny_model, VOCAB, optimizer, LossConfig(), mesh1, steps)
  _, metrics = run(learner, [batch] * steps)
  losses = [row["loss"] for row in metrics]
  assert losses[0] == pytest.approx(np.log(VOCAB), abs=1.0)
  assert losses[-1] < 0.05


def test_kl_is_zero_at_the_reference_and_holds_the_model_near_it(tiny_model, mesh1, batches, alone):
  held = trainer(tiny_model, mesh1, LossConfig(kl_weight=100.0))
  reference = jax.tree.map(np.asarray, held.init(jax.random.key(0)).params)
  state, metrics = run(held, batches, reference)
  assert metrics[0]["kl"] == pytest.approx(0.0, abs=1e-6)
  assert metrics[0]["policy_loss"] == pytest.approx(alone[1][0]["policy_loss"], rel=1e-6)
  assert int(state.step) == STEPS


def test_the_state_is_donated_and_the_start_survives(trainer1, batches):
  start = trainer1.init(jax.random.key(0)).params
  before = jax.device_get(start)
  state = trainer1.fresh_optimizer(start)
  after, _ = trainer1.train_step(state, shard_batch(trainer1.mesh, batches[0]))
  assert all(x.is_deleted() for x in jax.tree.leaves(state.params))
  assert not any(x.is_deleted() for x in jax.tree.leaves(start))
  jax.tree.map(np.testing.assert_array_equal, before, jax.device_get(start))
  assert isinstance(after, TrainState)


def test_norms_and_the_value_head_do_not_decay(tiny_model, mesh1):
  """With no gradient at all, decay alone moves the matrices."""
  empty = batch_lib.to_batch(batch_lib.empty(ROWS, T, A))
  learner = trainer(tiny_model, mesh1)
  start = jax.device_get(learner.init(jax.random.key(0)).params)
  params = jax.device_get(run(learner, [empty] * 2)[0].params)
  for name in ("norm", "value", "value_bias"):
    np.testing.assert_array_equal(params[name], start[name])
  np.testing.assert_array_equal(params["blocks"]["ffn_norm"], start["blocks"]["ffn_norm"])
  for name in ("embed", "unembed"):
    assert np.abs(params[name]).sum() < np.abs(start[name]).sum()


def test_micro_batches_must_divide_the_batch(tiny_model, mesh1, batches):
  with pytest.raises(UserError, match=r"batch_size=8 .*micro_batches=3"):
    run(trainer(tiny_model, mesh1, micro_batches=3), batches[:1])


def test_examples_are_shuffled_epochs_that_depend_on_seed_and_step_alone():
  texts = [([i], [i]) for i in range(10)]
  examples = Examples(texts, 4, 1, seed=3)
  drawn = [examples.texts[number][0][0] for number in range(30)]
  epochs = [drawn[i : i + 10] for i in (0, 10, 20)]
  assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 3
  again = Examples(texts, 4, 1, seed=3)
  np.testing.assert_array_equal(again.batch(5, 4).tokens, examples.batch(5, 4).tokens)
  np.testing.assert_array_equal(
    again.batch(5, 4, rows=[3, 1]).tokens, examples.batch(5, 4).tokens[[3, 1]]
  )
  other = Examples(texts, 4, 1, seed=4)
  assert [other.texts[number][0][0] for number in range(10)] != epochs[0]
