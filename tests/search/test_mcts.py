"""The tree search against its oracles: recomputation, stock mctx, a heap, and enumeration."""

import dataclasses
import functools
import heapq

import chex
import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from mctx._src.qtransforms import _compute_mixed_value

from jaxzero.errors import UserError
from jaxzero.models.transformer import Output, bind, init_params, param_shardings
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.search import game as game_lib
from jaxzero.search import mcts
from jaxzero.search.game import Game
from jaxzero.search.mcts import MCTSConfig
from jaxzero.search.networks import Recompute, TreeCache

VOCAB, END, B, P, C = 40, 2, 8, 5, 7
GUMBEL = MCTSConfig(num_simulations=20, num_candidates=6, max_considered=4)
BEST_FIRST = dataclasses.replace(GUMBEL, order="best_first")
CONFIGS = {"gumbel": GUMBEL, "best_first": BEST_FIRST}


@chex.dataclass(frozen=True)
class Table:
  """A network that is a table: what follows depends on depth and last token alone."""

  logits: jax.Array  # [D, V, V]
  values: jax.Array  # [D, V], logits of P(right)

  def initial_state(self):
    return ()

  def at(self, depth, token):
    depth = depth % self.logits.shape[0]
    return self.logits[depth, token], self.values[depth, token]

  def evaluate(self, state, simulation, token, node):
    logits, value = self.at(node.length - 1, token)
    return Output(logits[:, None], value[:, None]), state


def table(key, V, D=3, scale=2.0):
  a, b = jax.random.split(key)
  return Table(logits=scale * jax.random.normal(a, (D, V, V)), values=jax.random.normal(b, (D, V)))


def bare_game(key, V, C, rows=B):
  return Game(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_length=jnp.ones(rows, jnp.int32),
    completion=jnp.zeros((rows, C), jnp.int32),
    length=jnp.zeros(rows, jnp.int32),
    logits=jax.nn.log_softmax(2.0 * jax.random.normal(key, (rows, V))),
    value=jax.random.uniform(key, (rows,)),
    cache=(),
  )


search = jax.jit(mcts.search, static_argnames=("config", "end_id", "verify"))


def ends_even(completion, length):
  """A verdict that depends on the whole completion."""
  inside = jnp.arange(completion.shape[1]) < length[:, None]
  return jnp.sum(jnp.where(inside, completion, 0), axis=1) % 2 == 0


def think(tree_cache, config, model_config, params, prompts, prompt_length, gumbel):
  """A search from two tokens into the completion, by the tree's cache or by recomputation."""
  model = bind(model_config, VOCAB, params)
  layers = model.unstack()
  game = game_lib.start(model, layers, prompts, prompt_length, C, config.num_simulations)
  for token in (5, 6):
    rows = jnp.full(prompts.shape[0], token)
    game = game_lib.advance(model, layers, game, rows, prompt_length > 3)
  network = TreeCache(model, layers, game) if tree_cache else Recompute(model, game)
  out = mcts.search(game, network, config, gumbel, END, ends_even)
  return out.replace(cache=())


compiled_think = jax.jit(think, static_argnums=(0, 1, 2))


def case(model_config, seed):
  keys = jax.random.split(jax.random.key(seed), 4)
  params = init_params(model_config, VOCAB, keys[0])
  params["unembed"] *= 2.5  # a policy with an opinion makes deep trees
  params["value"] = jax.random.normal(keys[1], params["value"].shape)
  prompts = jax.random.randint(keys[2], (B, P), 3, VOCAB)
  length = jnp.array([3, 4, 5, 3, 4, 5, 4, 5])
  return params, prompts, length, jax.random.gumbel(keys[3], (B, VOCAB))


def real_nodes(tree):
  """[B, N + 1] bool: nodes that exist and do not hang below a terminal."""
  terminal = np.asarray(tree.embeddings.terminal)
  real = np.asarray(tree.node_visits) > 0
  for row, parents in enumerate(np.asarray(tree.parents)):
    for node, parent in enumerate(parents):
      if node and (terminal[row, parent] or not real[row, parent]):
        real[row, node] = False
  return real


@pytest.mark.parametrize("order", CONFIGS)
def test_the_cache_and_recomputation_make_the_same_tree(tiny_model, order):
  found = terminals = 0
  for seed in range(4):
    inputs = case(tiny_model, seed)
    a, b = (compiled_think(cached, CONFIGS[order], tiny_model, *inputs) for cached in (True, False))
    for name in ("token", "candidates", "visit_counts"):
      np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    chex.assert_trees_all_equal(a.found, b.found)
    np.testing.assert_allclose(a.weights, b.weights, atol=1e-5)
    real = real_nodes(a.tree)
    np.testing.assert_array_equal(real, real_nodes(b.tree))
    for name in ("parents", "action_from_parent", "node_visits"):
      x, y = getattr(a.tree, name), getattr(b.tree, name)
      np.testing.assert_array_equal(x[real], y[real])
    for name in ("node_values", "raw_values", "children_prior_logits"):
      x, y = getattr(a.tree, name), getattr(b.tree, name)
      np.testing.assert_allclose(x[real], y[real], atol=1e-5, rtol=1e-5)
    found += int(a.found.found.sum())
    terminals += int((a.tree.embeddings.terminal & real).sum())
    assert a.tree.embeddings.length[real].max() >= 5, "the trees are too flat to tell"
  assert found and terminals


def test_a_row_finds_the_same_whatever_its_neighbours_are(tiny_model):
  params, *inputs = case(tiny_model, 0)
  whole = compiled_think(True, GUMBEL, tiny_model, params, *inputs)
  reverse = compiled_think(True, GUMBEL, tiny_model, params, *(x[::-1] for x in inputs))
  for name in ("token", "candidates", "visit_counts", "root_value", "weights"):
    x, y = getattr(whole, name), getattr(reverse, name)
    np.testing.assert_allclose(x, y[::-1], atol=1e-6)


@pytest.mark.parametrize(
  ("mesh_config", "order"),
  [(MeshConfig(data=8), "gumbel"), (MeshConfig(data=4, fsdp=2), "best_first")],
)
def test_eight_devices_grow_the_trees_of_one(tiny_model, mesh_config, order):
  params, *inputs = case(tiny_model, 1)
  one = compiled_think(True, CONFIGS[order], tiny_model, params, *inputs)
  mesh = make_mesh(mesh_config)
  params = jax.device_put(params, param_shardings(tiny_model, VOCAB, mesh))
  rows = PartitionSpec(("data", "fsdp"))
  spread = jax.shard_map(
    functools.partial(think, True, CONFIGS[order], tiny_model),
    mesh=mesh,
    in_specs=(PartitionSpec(), rows, rows, rows),
    out_specs=rows,
    axis_names={"data", "fsdp"},
    check_vma=False,
  )
  eight = jax.jit(spread)(params, *inputs)
  assert len(eight.token.sharding.device_set) == 8
  for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(eight), strict=True):
    if x.dtype == jnp.float32:
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)
    else:
      np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("rescale", "scale"), [(False, 1.0), (True, 0.0)])
def test_a_search_over_the_whole_vocabulary_is_stock_mctx(rescale, scale):
  V, N, key = 6, 24, jax.random.key(3)
  config = MCTSConfig(num_simulations=N, num_candidates=V, max_considered=4, rescale_values=rescale)
  net, game = table(key, V), bare_game(key, V, C=N + 2)
  gumbel = scale * jax.random.gumbel(jax.random.split(key)[1], (B, V))
  ours = search(game, net, config, gumbel, end_id=-1, verify=None)

  def recurrent_fn(_, rng, action, depth):
    logits, value = net.at(depth, action)
    out = mctx.RecurrentFnOutput(
      reward=jnp.zeros(B),
      discount=jnp.ones(B),
      prior_logits=jax.nn.log_softmax(logits),
      value=jax.nn.sigmoid(value),
    )
    return out, depth + 1

  stock = mctx.gumbel_muzero_policy(
    None,
    key,
    mctx.RootFnOutput(prior_logits=game.logits, value=game.value, embedding=game.length),
    recurrent_fn,
    N,
    qtransform=functools.partial(
      mctx.qtransform_completed_by_mix_value,
      value_scale=config.value_scale,
      maxvisit_init=config.maxvisit_init,
      rescale_values=rescale,
    ),
    max_num_considered_actions=config.max_considered,
    gumbel_scale=scale,
  )
  np.testing.assert_array_equal(ours.token, stock.action)
  counts = stock.search_tree.summary().visit_counts
  np.testing.assert_array_equal(
    ours.visit_counts, jnp.take_along_axis(counts, ours.candidates, axis=1)
  )
  weights = jnp.take_along_axis(stock.action_weights, ours.candidates, axis=1)
  np.testing.assert_allclose(ours.weights[:, :V], weights, atol=1e-5)
  np.testing.assert_allclose(ours.weights[:, V], 0.0, atol=1e-5)
  np.testing.assert_allclose(ours.root_value, stock.search_tree.node_values[:, 0], atol=1e-5)


def test_the_rest_bucket_is_what_a_full_vocabulary_would_hold():
  V, A = 30, 5
  random = np.random.default_rng(0)
  log_p = jax.nn.log_softmax(random.normal(size=(B, V)).astype(np.float32))
  candidates = np.stack([random.permutation(V)[:A] for _ in range(B)])
  q = random.normal(size=(B, A)).astype(np.float32)
  rest_q = random.normal(size=B).astype(np.float32)
  full = np.broadcast_to(rest_q[:, None], (B, V)).copy()
  np.put_along_axis(full, candidates, q, axis=1)
  policy = np.asarray(jax.nn.softmax(log_p + full))
  expected = np.take_along_axis(policy, candidates, axis=1)
  ours = mcts.improved_policy(jnp.take_along_axis(log_p, candidates, axis=1), q, rest_q)
  np.testing.assert_allclose(ours[:, :A], expected, atol=1e-6)
  np.testing.assert_allclose(ours[:, A], 1 - expected.sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("rescale", [False, True])
def test_untried_candidates_are_believed_as_much_as_the_rest_of_the_vocabulary(rescale):
  key = jax.random.key(5)
  config = dataclasses.replace(GUMBEL, rescale_values=rescale)
  game, net = bare_game(key, 12, C), table(key, 12)
  gumbel = jax.random.gumbel(key, (B, 12))
  out = search(game, net, config, gumbel, end_id=0, verify=ends_even)
  np.testing.assert_allclose(out.weights.sum(axis=1), 1.0, atol=1e-5)
  assert (out.visit_counts.sum(axis=1) == config.num_simulations).all()
  prior = np.exp(np.take_along_axis(game.logits, out.candidates, axis=1))
  gain = out.weights[:, :-1] / prior
  rest_gain = out.weights[:, -1] / (1 - prior.sum(axis=1))
  untried = np.asarray(out.visit_counts) == 0
  assert untried.any()
  np.testing.assert_allclose(
    gain[untried], np.broadcast_to(rest_gain[:, None], gain.shape)[untried], rtol=1e-3
  )


@pytest.mark.parametrize("order", CONFIGS)
def test_mixed_value_is_mctxs(tiny_model, order):
  tree = compiled_think(True, CONFIGS[order], tiny_model, *case(tiny_model, 2)).tree

  def reference(tree):
    return _compute_mixed_value(
      tree.raw_values[0],
      tree.qvalues(0),
      tree.children_visits[0],
      jax.nn.softmax(tree.children_prior_logits[0]),
    )

  np.testing.assert_allclose(mcts.mixed_value(tree), jax.vmap(reference)(tree), rtol=1e-5)


def paths(out, row):
  """The path of each node but the root, in the order in which simulations made them."""
  node = out.tree.embeddings
  count = node.length.shape[1]
  return [tuple(node.completion[row, i, : node.length[row, i]].tolist()) for i in range(1, count)]


def heap_order(game, net, config, gumbel, row, end_id):
  """Best first with a heap, in numpy: paths in the order of visits."""
  A, C = config.num_candidates, game.completion.shape[1]
  logits = np.asarray(net.logits - jax.nn.logsumexp(net.logits, axis=-1, keepdims=True))
  heap, visited = [], []

  def push(path, score, log_p):
    for token in np.argsort(-log_p)[:A]:
      heapq.heappush(heap, (-(score + log_p[token] + config.depth_bonus), (*path, int(token))))

  push((), 0.0, np.asarray(game.logits[row] + gumbel[row]))
  while heap and len(visited) < config.num_simulations:
    score, path = heapq.heappop(heap)
    visited.append(path)
    if path[-1] != end_id and len(path) < C:
      push(path, -score, logits[(len(path) - 1) % len(logits), path[-1]])
  return visited


@pytest.mark.parametrize("depth_bonus", [0.0, 1.0])
def test_best_first_visits_what_a_heap_would_and_nothing_twice(depth_bonus):
  V, key = 7, jax.random.key(11)
  config = dataclasses.replace(BEST_FIRST, num_simulations=30, depth_bonus=depth_bonus)
  config = dataclasses.replace(config, num_candidates=4)
  game, net = bare_game(key, V, C=5), table(key, V)
  gumbel = jax.random.gumbel(key, (B, V))
  out = jax.device_get(search(game, net, config, gumbel, end_id=0, verify=None))
  for row in range(B):
    visited = paths(out, row)
    assert len(set(visited)) == len(visited)
    assert visited == heap_order(game, net, config, gumbel, row, end_id=0)


TARGETS = jnp.array([[1, 1, 0], [3, 2, 0], [2, 0, 0], [1, 3, 0], [0, 0, 0]])


def is_target(completion, length):
  wanted = jnp.argmax(TARGETS == 0, axis=1) + 1
  return jnp.all(completion == TARGETS, axis=1) & (length == wanted)


@pytest.mark.parametrize("order", CONFIGS)
def test_enough_simulations_find_the_only_right_answer_and_start_towards_it(order):
  V, rows = 4, len(TARGETS)
  everything = V + (V - 1) * V + (V - 1) ** 2 * V  # all paths of at most 3 tokens
  config = MCTSConfig(
    num_simulations=everything if order == "best_first" else 400,
    num_candidates=V,
    max_considered=V,
    order=order,
    value_scale=1.0,
  )
  key = jax.random.key(2)
  game, net = bare_game(key, V, C=3, rows=rows), table(key, V, scale=0.5)
  net = net.replace(values=jnp.full_like(net.values, -4.0))
  out = search(game, net, config, jnp.zeros((rows, V)), end_id=0, verify=is_target)
  assert out.found.found.all()
  assert is_target(out.found.completion, out.found.length).all()
  np.testing.assert_array_equal(out.token, TARGETS[:, 0])
  if order == "best_first":
    real = real_nodes(out.tree)
    assert (real.sum(axis=1) == everything + 1).all(), "every path once"
    assert (np.asarray(out.tree.embeddings.right & real).sum(axis=1) == 1).all()


def test_without_a_verifier_nothing_is_found():
  key = jax.random.key(4)
  out = search(bare_game(key, 6, C=3), table(key, 6), GUMBEL, jnp.zeros((B, 6)), 0, None)
  assert not out.found.found.any() and not out.tree.embeddings.right.any()
  assert out.tree.embeddings.terminal.any()
  np.testing.assert_array_equal(out.tree.children_rewards, 0.0)


@pytest.mark.parametrize(
  ("change", "numbers"),
  [
    ({"num_candidates": 41}, "num_candidates=41.*40"),
    ({"num_candidates": 1}, "num_candidates=1 .*2"),
    ({"max_considered": 7}, "max_considered=7.*num_candidates=6"),
    ({"order": "breadth"}, "breadth"),
    ({"num_simulations": 0}, "num_simulations=0"),
  ],
)
def test_searches_that_cannot_run_are_refused(change, numbers):
  with pytest.raises(UserError, match=numbers):
    dataclasses.replace(GUMBEL, **change).check(VOCAB)
