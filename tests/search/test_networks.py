"""The tree's KV cache against recomputation, in every order, alone and on eight devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from programs import Program
from tables import QUICK, EvenSum, explore, row_keys, weights

from jaxzero.models.transformer import bind, init_params, param_shardings
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.search import game as game_lib
from jaxzero.search import mcts
from jaxzero.search.config import VALUE_ORDERS, TreeConfig
from jaxzero.search.networks import Recompute, TreeCache
from jaxzero.search.rules import Unverified, Verified

VOCAB, B, P, C = 40, 8, 5, 7
GUMBEL = TreeConfig(
  order="gumbel", num_simulations=20, num_candidates=6, max_considered=4, value_scale=1.0
)
CONFIGS = {
  "exact": dataclasses.replace(GUMBEL, parallel="exact"),
  "lazy": dataclasses.replace(GUMBEL, parallel="lazy"),
  "runs": dataclasses.replace(GUMBEL, order="puct", max_run=3, fork_threshold=0.4, num_nodes=30),
  "dives": dataclasses.replace(GUMBEL, rollout=True, num_nodes=40),
  "guided": TreeConfig(num_simulations=30, num_candidates=6),
  "without_replacement": TreeConfig("without_replacement", num_simulations=30, num_candidates=6),
  "shared_samples": TreeConfig("shared_samples", num_simulations=30, num_candidates=6),
}
SETTINGS = weights(value_weight=0.5, failure_weight=0.5, rollout_weight=0.7)


def think(tree_cache, config, model_config, params, prompts, prompt_length, gumbel, keys):
  """A search from two tokens into the completion, by the tree's cache or by recomputation."""
  verifier, model = EvenSum(), bind(model_config, VOCAB, params)
  layers = model.unstack()
  rules = Verified(verifier, verifier.end_id)
  slots, judge = mcts.tree_slots(config), verifier.start(prompts)
  game = game_lib.start(model, layers, prompts, prompt_length, judge, C, slots)
  for token in (5, 6):
    rows = jnp.full(prompts.shape[0], token)
    game = game_lib.advance(model, layers, game, rows, prompt_length > 3, verifier)
  network = TreeCache(model, layers, game) if tree_cache else Recompute(model, game)
  if config.order in VALUE_ORDERS:
    out = mcts.search(game, network, config, gumbel, rules, game.judge, SETTINGS)
    keep = ("token", "weights", "visit_counts", "root_value", "found", "nodes", "tree")
    return {name: getattr(out, name) for name in keep}
  limit = jnp.full(prompts.shape[0], config.capacity)
  frontier, _, _ = explore(game, network, rules, config, gumbel, keys, limit, SETTINGS)
  return {
    f.name: getattr(frontier, f.name) for f in dataclasses.fields(frontier) if f.name != "state"
  }


compiled_think = jax.jit(think, static_argnums=(0, 1, 2), compiler_options=QUICK)


def case(model_config, seed):
  keys = jax.random.split(jax.random.key(seed), 4)
  params = init_params(model_config, VOCAB, keys[0])
  params["unembed"] *= 2.5  # a policy with an opinion makes deep trees
  params["value"] = jax.random.normal(keys[1], params["value"].shape)
  prompts = jax.random.randint(keys[2], (B, P), 3, VOCAB)
  length = jnp.array([3, 4, 5, 3, 4, 5, 4, 5])
  return params, prompts, length, jax.random.gumbel(keys[3], (B, VOCAB)), row_keys(seed, B)


def assert_same(a, b, atol=1e-5):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jnp.floating):
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol, err_msg=str(path))
    else:
      np.testing.assert_array_equal(x, y, err_msg=str(path))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_cache_and_recomputation_make_the_same_tree(tiny_model, name):
  deepest = right = terminals = 0
  for seed in range(3):
    inputs = case(tiny_model, seed)
    a, b = (
      jax.device_get(compiled_think(cached, CONFIGS[name], tiny_model, *inputs))
      for cached in (True, False)
    )
    for field in ("score", "best"):
      # Noise that is conditioned on its maximum magnifies what a rounding changes.
      if field in a:
        np.testing.assert_allclose(a.pop(field), b.pop(field), atol=1e-2)
    assert_same(a, b)
    right += int(a["tree"].right.sum())
    terminals += int(a["tree"].terminal.sum())
    deepest = max(deepest, int(a["tree"].depth.max()))
  assert deepest >= 4, "the trees are too flat to tell"
  assert terminals > right > 0


ROW_BY_ROW = ("token", "weights", "visit_counts", "root_value", "found", "nodes")


@pytest.mark.parametrize("name", ["lazy", "guided"])
def test_a_row_finds_the_same_whatever_its_neighbours_are(tiny_model, name):
  params, *inputs = case(tiny_model, 0)
  whole = compiled_think(True, CONFIGS[name], tiny_model, params, *inputs)
  reverse = compiled_think(True, CONFIGS[name], tiny_model, params, *(x[::-1] for x in inputs))
  keep = ROW_BY_ROW if name == "lazy" else whole.keys()
  assert_same(
    {key: whole[key] for key in keep},
    jax.tree.map(lambda x: x[::-1], {key: reverse[key] for key in keep}),
  )


@pytest.fixture(scope="module")
def spread(tiny_model):
  """The search in passes, compiled for eight devices, and what it is to search."""
  params, *inputs = case(tiny_model, 1)
  mesh = make_mesh(MeshConfig(data=4, fsdp=2))
  sharded = jax.device_put(params, param_shardings(tiny_model, VOCAB, mesh))
  rows = PartitionSpec(("data", "fsdp"))
  function = jax.shard_map(
    functools.partial(think, True, CONFIGS["lazy"], tiny_model),
    mesh=mesh,
    in_specs=(PartitionSpec(), rows, rows, rows, rows),
    out_specs=rows,
    axis_names={"data", "fsdp"},
    check_vma=False,
  )
  inputs = jax.device_put(inputs, NamedSharding(mesh, rows))
  return jax.jit(function).lower(sharded, *inputs).compile(), params, sharded, inputs


def test_eight_devices_search_in_passes_as_one(tiny_model, spread):
  compiled, params, sharded, inputs = spread
  one = compiled_think(True, CONFIGS["lazy"], tiny_model, params, *jax.device_get(inputs))
  eight = compiled(sharded, *inputs)
  assert len(eight["token"].sharding.device_set) == 8
  # Where a node lies may depend on what neighbours ask for; what is found does not.
  assert_same({key: one[key] for key in ROW_BY_ROW}, {key: eight[key] for key in ROW_BY_ROW})


def test_passes_neither_communicate_nor_copy_the_cache(tiny_model, spread):
  slots = P + C + mcts.tree_slots(CONFIGS["lazy"]) + 1
  cache = (1, tiny_model.num_kv_heads, slots, tiny_model.head_dim)
  program = Program(spread[0].as_text())
  assert program.loops and program.collectives, "the parameters are gathered, once"
  assert program.collectives_in_loops == []
  assert program.copies_in_loops(cache) == []


@pytest.mark.parametrize("name", CONFIGS)
def test_the_tree_is_float32_whatever_the_model_computes_in(tiny_model, name):
  model = dataclasses.replace(tiny_model, dtype="bfloat16")
  inputs = jax.eval_shape(lambda: case(model, 0))
  out = jax.eval_shape(functools.partial(think, True, CONFIGS[name], model), *inputs)
  floats = [x.dtype for x in jax.tree.leaves(out) if jnp.issubdtype(x.dtype, jnp.floating)]
  assert floats and set(floats) == {jnp.dtype("float32")}


def test_every_node_has_a_slot_of_its_own_and_the_prefix_is_not_touched(tiny_model):
  """KV of prefix and nodes: the cache after a search holds what recomputing each path gives."""
  params, prompts, length, gumbel, _ = case(tiny_model, 2)
  config = CONFIGS["exact"]

  @jax.jit
  def caches(params):
    model = bind(tiny_model, VOCAB, params)
    layers = model.unstack()
    judge, slots = EvenSum().start(prompts), mcts.tree_slots(config)
    game = game_lib.start(model, layers, prompts, length, judge, C, slots)
    rules = Unverified(EvenSum.end_id)
    network = TreeCache(model, layers, game)
    out = mcts.search(game, network, config, gumbel, rules, judge, SETTINGS)
    return game.cache, out.state, out.tree, mcts.tree_slots(config)

  before, after, tree, slots = jax.device_get(caches(params))
  for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
    np.testing.assert_array_equal(old[:, :, : P + C], new[:, :, : P + C])
    assert new.shape[2] == P + C + slots + 1, "prefix, one slot a node, and a spare one"
    written = np.abs(new[:, :, P + C : -1]).sum(axis=(1, 3)) > 0
    assert written[tree.parent[:, 1:] >= 0].all()


def test_without_a_verifier_ends_are_worth_what_the_value_head_says(tiny_model):
  params, prompts, length, gumbel, _ = case(tiny_model, 2)
  config = dataclasses.replace(GUMBEL, num_simulations=12)

  @jax.jit
  def unverified(params):
    model = bind(tiny_model, VOCAB, params)
    judge = EvenSum().start(prompts)
    game = game_lib.start(model, model.unstack(), prompts, length, judge, C)
    rules, network = Unverified(EvenSum.end_id), Recompute(model, game)
    return mcts.search(game, network, config, gumbel, rules, judge, SETTINGS).replace(state=())

  out = jax.device_get(unverified(params))
  tree = out.tree
  assert tree.terminal.any() and not tree.right.any() and not out.found.found.any()
  assert not tree.reward.any() and (tree.discount == 1).all()
  np.testing.assert_array_equal(tree.value[tree.terminal], tree.raw_value[tree.terminal])
