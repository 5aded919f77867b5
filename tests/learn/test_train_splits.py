"""The train step on eight devices, however they are split: one result, and the planned talk."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from batches import VOCAB, mixed_batch
from programs import Program
from splits import MODEL, SPLITS, mesh_of, name, random_params

from jaxzero.learn.losses import LossConfig
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.parallel.sharding import shard_batch

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def step_of():
  """Of a split: the compiled train step, and what it gives: gradients and metrics.

  With nothing clipped, Adam's first moment after one step is a tenth of the gradient.
  """
  params = random_params(MODEL, VOCAB)

  @functools.cache
  def step(split, rows=16, dtype="float32"):
    model, mesh = dataclasses.replace(MODEL, dtype=dtype), mesh_of(split)
    optimizer = OptimizerConfig(max_grad_norm=1e9)
    trainer = Trainer(model, VOCAB, optimizer, LossConfig(), mesh, steps=10)
    state = trainer.fresh_optimizer(jax.device_put(params, trainer.shardings.params))
    placed = shard_batch(mesh, mixed_batch(rows=rows))
    compiled = trainer.train_step.lower(state, placed).compile()
    state, metrics = compiled(state, placed)
    return compiled, jax.device_get((state.optimizer[1][0].mu, metrics))

  return step


@pytest.mark.parametrize("split", SPLITS, ids=name)
def test_losses_and_gradients_are_those_of_one_device(step_of, split):
  (one, metrics1), (many, metrics) = step_of((1, 1, 1))[1], step_of(split)[1]
  for key, value in metrics1.items():
    np.testing.assert_allclose(metrics[key], value, rtol=1e-5, err_msg=key)
  for (path, x), y in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(many), strict=True):
    assert np.linalg.norm(x) > 0, path
    assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x), path


def test_bfloat16_trains_on_all_axes_at_once(step_of):
  (exact, _), (low, metrics) = step_of((1, 1, 1))[1], step_of((2, 2, 2), dtype="bfloat16")[1]
  assert np.isfinite(metrics["loss"])
  for x, y in zip(jax.tree.leaves(exact), jax.tree.leaves(low), strict=True):
    assert 0 < np.linalg.norm(x - y) < 0.1 * np.linalg.norm(x)


# Arrays with gradients, scalars left out.
TABLES, STACKED, NORMS = 2, 7, 6
MULTIPLIED = 5  # of a layer: qkv, o, gate, up, down


@pytest.mark.parametrize("split", [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)], ids=name)
def test_a_step_communicates_what_is_planned(step_of, split):
  """The table in `jaxzero.learn.train`; the layers are scanned, so a loop is a layer."""
  data, fsdp, tensor = (size > 1 for size in split)
  planned = {
    ("all-reduce", False): (TABLES + STACKED) * data + NORMS * (data or fsdp),
    ("all-gather", False): TABLES * fsdp,
    ("reduce-scatter", False): TABLES * fsdp,
    ("all-gather", True): 2 * MULTIPLIED * fsdp,  # the backward pass gathers again
    ("reduce-scatter", True): MULTIPLIED * fsdp,
    # Behind o and down, and back before qkv and gate with up: two arrays that an accelerator's
    # compiler adds before it communicates, and the CPU's sends as one. Then the small gradient of
    # the norms of queries and keys, whose heads are spread.
    ("all-reduce", True): (2 + 1 + 2 + 1) * tensor,
  }
  program = Program(step_of(split)[0].as_text())
  assert program.arrays_communicated == {key: count for key, count in planned.items() if count}


@pytest.mark.parametrize("split", [(1, 1, 1), (2, 2, 2)], ids=name)
def test_the_state_is_updated_in_place(step_of, split):
  """Parameters and both moments: matrices over fsdp x tensor, tables over fsdp, norms whole."""
  memory = step_of(split)[0].memory_analysis()
  _, fsdp, tensor = split
  stacked = MODEL.num_layers * MODEL.layer_parameters() / (fsdp * tensor)
  tables = 2 * VOCAB * MODEL.embed_dim
  norms = MODEL.parameters(VOCAB) - tables - MODEL.num_layers * MODEL.layer_parameters()
  floats = stacked + tables / fsdp + norms
  counters = 3
  assert memory.alias_size_in_bytes == 4 * (3 * floats + counters)


def test_a_devices_work_does_not_grow_with_the_data_axis(step_of):
  """Two rows a device; from two devices on, gradients are read and written once more."""
  gradients = 2 * 4 * MODEL.parameters(VOCAB)
  work = {}
  for data in (1, 2, 4, 8):
    compiled = step_of((data, 1, 1), rows=2 * data)[0]
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    talk = gradients if data > 1 else 0
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    work[data] = cost["flops"], cost["bytes accessed"] - talk, held
  for data in (2, 4, 8):
    np.testing.assert_allclose(work[data], work[1], rtol=0.02, err_msg=f"{data} devices")
