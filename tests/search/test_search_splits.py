"""Search on eight devices, however they are split: the same trees, and no talk but tensor's."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from programs import Program
from splits import MODEL, SPLITS, mesh_of, name, random_params

from jaxzero.models.transformer import bind, param_shardings
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search import game as game_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine, make_weights
from jaxzero.search.networks import TreeCache
from jaxzero.search.pool import think

ROWS, LIMIT = 16, 12
CONFIG = TreeConfig(order="guided", num_simulations=LIMIT, num_candidates=3, value_weight=0.3)
WITHOUT_TENSOR = [split for split in SPLITS if split[2] == 1]
WITH_TENSOR = [split for split in SPLITS if split[2] > 1]


MODEL1 = dataclasses.replace(MODEL, num_layers=1)
pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def problems(task):
  return task.problems("test", 0, ROWS)


@pytest.fixture(scope="module")
def params(tokenizer):
  return random_params(MODEL1, tokenizer.vocab_size)


@pytest.fixture(scope="module")
def engine_of(task, tokenizer):
  return functools.cache(lambda split: Engine(MODEL1, tokenizer, task, mesh_of(split)))


@pytest.fixture(scope="module")
def thinking_of(engine_of, params, problems):
  """Of a split: what it thinks of the problems of some rows, all at once."""
  keys = jax.random.split(jax.random.key(0), ROWS)

  @functools.cache
  def thinking(split, begin=0, end=ROWS):
    rows = slice(begin, end)
    return think(
      engine_of(split), params, problems[rows], keys[rows], LIMIT, CONFIG, verify_inside=False,
      noise=1.0, batch_size=ROWS, keep_trees=ROWS,
    )  # fmt: skip

  return thinking


@pytest.fixture(scope="module")
def row_by_row(thinking_of):
  """One device with as many rows at a time as each of eight has."""
  pairs = [thinking_of((1, 1, 1), begin, begin + 2) for begin in range(0, ROWS, 2)]
  insight = jax.tree.map(lambda *x: np.concatenate(x), *[pair.insight for pair in pairs])
  return insight.replace(number=np.arange(ROWS)), [tree for pair in pairs for tree in pair.trees]


@pytest.mark.parametrize("split", WITHOUT_TENSOR, ids=name)
def test_eight_devices_grow_the_trees_of_one_to_the_bit(thinking_of, row_by_row, split):
  thinking = thinking_of(split)
  jax.tree.map(np.testing.assert_array_equal, (thinking.insight, thinking.trees), row_by_row)


@pytest.fixture(scope="module")
def logits_of(engine_of, params, thinking_of, problems):
  """Of a split: the logits [ROWS, LIMIT, V] at every node of one device's trees."""
  tree = jax.tree.map(lambda *x: np.stack(x), *thinking_of((1, 1, 1)).trees)
  node = np.broadcast_to(np.arange(1, LIMIT + 1), (ROWS, LIMIT))

  def logits(split):
    engine = engine_of(split)

    def evaluate(params, given):
      batch, tree, node = given
      model = bind(engine.model, engine.tokenizer.vocab_size, params)
      layers, judge = model.unstack(), engine.judge(batch["facts"])
      prompts = batch["prompts"], batch["prompt_length"]
      game = game_lib.start(model, layers, *prompts, judge, engine.max_tokens, LIMIT)
      network = TreeCache(model, layers, game)
      return network.evaluate(network.initial_state(), tree, node, node > 0)[0].logits

    given = shard_batch(engine.mesh, (engine.encode(problems, ROWS), tree, node))
    return np.asarray(jax.jit(engine._on_mesh(evaluate))(engine.gather(params), given))

  return functools.cache(logits)


@pytest.mark.parametrize("split", WITH_TENSOR, ids=name)
def test_a_split_over_tensor_gives_the_logits_of_one_device(logits_of, split):
  np.testing.assert_allclose(logits_of(split), logits_of((1, 1, 1)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("split", WITH_TENSOR, ids=name)
def test_a_split_over_tensor_acts_as_one_device(thinking_of, split):
  """Sums in another order may turn what is nearly level, so not every game need be the same."""
  one, many = (thinking_of(s).insight.played.completion for s in ((1, 1, 1), split))
  agreement = float(np.mean(one == many, where=one > 0))
  print(f"{name(split)}: {agreement:.1%} of the actions agree")
  assert agreement >= 0.9


@pytest.fixture(scope="module")
def advance_of(engine_of, params, problems):
  """Of a split: the compiled loop that grows `rows` trees."""

  def advance(split, rows=ROWS):
    engine = engine_of(split)
    thinker, weights = engine.thinker(CONFIG, False), make_weights(CONFIG, 1.0)
    batch = engine.encode(problems[:rows], rows) | {
      "number": np.arange(rows, dtype=np.int32),
      "keys": np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), rows))),
      "limit": np.full(rows, LIMIT, np.int32),
      "noise": np.ones(rows, np.float32),
    }
    held = engine.gather(params)
    thoughts = thinker.start(held, shard_batch(engine.mesh, batch), weights)
    return thinker.advance.lower(held, thoughts, weights, np.int32(1)).compile()

  return advance


@pytest.mark.parametrize("split", [(4, 2, 1), (2, 2, 2)], ids=name)
def test_trees_grow_in_silence_but_for_two_sums_a_layer_over_tensor(advance_of, split):
  program = Program(advance_of(split).as_text())
  sums = {("all-reduce", True): 2 * MODEL1.num_layers} if split[2] > 1 else {}
  assert program.loops and program.arrays_communicated == sums
  assert len(program.collectives) == sum(sums.values()), "no scalar either"


def test_a_devices_work_does_not_grow_with_the_data_axis(advance_of):
  """Two trees a device."""
  work = []
  for data in (1, 2, 4, 8):
    compiled = advance_of((data, 1, 1), rows=2 * data)
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    work.append((cost["flops"], cost["bytes accessed"], held))
  np.testing.assert_allclose(work[1:], work[:1] * 3, rtol=0.02)


def test_gathered_parameters_are_whole_but_for_tensor_and_low_but_for_norms(task, tokenizer):
  model = dataclasses.replace(MODEL1, dtype="bfloat16")
  engine = Engine(model, tokenizer, task, mesh_of((2, 2, 2)))
  params = random_params(model, tokenizer.vocab_size)
  stored = param_shardings(model, tokenizer.vocab_size, engine.mesh)
  held = engine.gather(jax.device_put(params, stored))
  leaves = zip(jax.tree.leaves_with_path(held), jax.tree.leaves(params), strict=True)
  for (path, x), before in leaves:
    small = any(word in path[-1].key for word in ("norm", "value"))
    assert x.dtype == ("float32" if small else "bfloat16"), path
    np.testing.assert_array_equal(x, before.astype(x.dtype), err_msg=str(path))
    assert {axis for axis in x.sharding.spec if axis} <= {"tensor"}, path
  assert held["blocks"]["q"].sharding.spec == PartitionSpec(None, None, "tensor", None)
