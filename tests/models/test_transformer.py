"""One network, many ways to run it: whole, cached, scanned, rematerialised, sharded, bfloat16."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.models.attention import (
  attention,
  rope,
  rotation,
)
from jaxzero.models.cache import init_cache
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import bind, init_params, param_shardings
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch

VOCAB, B, T = 64, 4, 9
VARIANTS = {
  "plain": {},
  "grouped": {"num_heads": 4, "num_kv_heads": 2},
  "one kv head": {"num_heads": 4, "num_kv_heads": 1},
  "qk_norm": {"qk_norm": True},
  "tied": {"tie_embeddings": True},
  "deeper": {"num_layers": 3, "qk_norm": True, "tie_embeddings": True},
}


def random_params(config, seed=0):
  """Initial parameters with the zero-initialised value head made random too."""
  params = init_params(config, VOCAB, jax.random.key(seed))
  params["value"] = jax.random.normal(jax.random.key(seed + 1), params["value"].shape)
  return params


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens):
  rows, length = tokens.shape
  positions = jnp.broadcast_to(jnp.arange(length), (rows, length))
  mask = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (rows, length, length))
  return bind(config, VOCAB, params)(tokens, positions, mask)


@pytest.fixture(scope="module")
def tokens():
  return jax.random.randint(jax.random.key(7), (B, T), 0, VOCAB)


@pytest.fixture(scope="module")
def params(tiny_model):
  return random_params(tiny_model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameters_are_counted_exactly(tiny_model, variant):
  config = dataclasses.replace(tiny_model, **VARIANTS[variant])
  shapes = jax.eval_shape(lambda: init_params(config, VOCAB, jax.random.key(0)))
  assert config.parameters(VOCAB) == sum(x.size for x in jax.tree.leaves(shapes))
  assert {str(x.dtype) for x in jax.tree.leaves(shapes)} == {"float32"}


def test_flops_agree_with_xla_on_an_unrolled_forward_and_its_gradient():
  config, length = ModelConfig(), 32
  shapes = jax.eval_shape(lambda: init_params(config, VOCAB, jax.random.key(0)))
  tokens = jax.ShapeDtypeStruct((2, length), jnp.int32)
  ours = 2 * length * config.flops_per_token(VOCAB, context=length)
  counted = forward.lower(config, shapes, tokens).compile().cost_analysis()["flops"]
  assert ours / counted == pytest.approx(1.0, abs=0.05)
  loss = lambda params, tokens: sum(map(jnp.sum, forward(config, params, tokens)))  # noqa: E731
  counted = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile().cost_analysis()["flops"]
  assert 3 * ours / counted == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
  ("wrong", "numbers"),
  [
    ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4.*num_kv_heads=3"),
    ({"head_dim": 7}, "head_dim=7"),
    ({"num_layers": 0}, "num-layers=0"),
    ({"dtype": "float16"}, "float16"),
    ({"remat": "some"}, "remat='some'.*none, dots or full"),
  ],
)
def test_impossible_shapes_are_refused(wrong, numbers):
  with pytest.raises(UserError, match=numbers):
    ModelConfig(**wrong).check()


@pytest.mark.parametrize(
  ("axis", "sizes", "words"),
  [
    ("tensor", {"num_heads": 6}, "--model.num-heads=6 .*--mesh.tensor=4.*multiple of 4"),
    ("tensor", {"num_heads": 4}, "--model.num-kv-heads=2 .*--mesh.tensor=4"),
    ("tensor", {"num_heads": 4, "num_kv_heads": 4, "ffn_dim": 50}, "--model.ffn-dim=50 "),
    ("fsdp", {"embed_dim": 34}, "--model.embed-dim=34 .*--mesh.fsdp=4"),
  ],
)
def test_a_shape_that_does_not_divide_over_the_mesh_is_refused(tiny_model, axis, sizes, words):
  mesh = make_mesh(MeshConfig(**{axis: 4}))
  with pytest.raises(UserError, match=words):
    param_shardings(dataclasses.replace(tiny_model, **sizes), VOCAB, mesh)


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_token_sees_what_comes_after_it(tiny_model, tokens, variant):
  config = dataclasses.replace(tiny_model, **VARIANTS[variant])
  params = random_params(config)
  before = forward(config, params, tokens)
  after = forward(config, params, tokens.at[:, 5].add(1) % VOCAB)
  for a, b in zip(before, after, strict=True):
    assert a.dtype == jnp.float32 and np.isfinite(a).all()
    np.testing.assert_array_equal(a[:, :5], b[:, :5])
    assert not np.allclose(a[:, 5:], b[:, 5:])


@pytest.mark.parametrize("switch", [{"scan_layers": True}, {"remat": "dots"}, {"remat": "full"}])
def test_switches_change_neither_parameters_nor_results(tiny_model, params, tokens, switch):
  switched = dataclasses.replace(tiny_model, **switch)
  other = random_params(switched)
  jax.tree.map(np.testing.assert_array_equal, params, other)

  def loss(config, params):
    output = forward(config, params, tokens)
    return jnp.mean(jax.nn.log_softmax(output.logits)[..., 0] + output.value_logits)

  a, da = jax.value_and_grad(functools.partial(loss, tiny_model))(params)
  b, db = jax.value_and_grad(functools.partial(loss, switched))(params)
  np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), da, db)


def test_the_more_is_computed_again_the_less_is_kept(tiny_model, tokens):
  """Temporary bytes of a gradient over long sequences; outside of a loop the CPU's compiler would
  merge what is computed twice."""
  long = jnp.tile(tokens, (1, 8))

  def kept(remat):
    config = dataclasses.replace(tiny_model, num_layers=4, remat=remat, scan_layers=True)
    loss = lambda params: jnp.mean(forward(config, params, long).logits ** 2)  # noqa: E731
    compiled = jax.jit(jax.grad(loss)).lower(random_params(config)).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  none, dots, full = (kept(remat) for remat in ("none", "dots", "full"))
  assert full < 0.9 * dots < 0.9 * 0.9 * none


@functools.partial(jax.jit, static_argnums=0)
def one_by_one(config, params, tokens, start, slot_of):
  """Prefills `start` tokens and decodes the rest, token t of row b in slot slot_of[b, t]."""
  model = bind(config, VOCAB, params)
  layers, length = model.unstack(), tokens.shape[1]
  slots = int(slot_of.shape[1]) + 4
  cache = init_cache(config, B, slots)
  prefix = jnp.arange(start.shape[0])
  mask = jnp.broadcast_to(jnp.arange(slots) <= prefix[:, None], (B, len(prefix), slots))
  positions = jnp.broadcast_to(prefix, (B, len(prefix)))
  output, cache = model.extend(
    layers, cache, tokens[:, : len(prefix)], positions, jnp.int32(0), mask
  )
  outputs, seen = [output], mask[:, -1]
  for t in range(len(prefix), length):
    seen = seen | (jnp.arange(slots) == slot_of[:, t, None])
    position = jnp.full((B, 1), t)
    output, cache = model.extend(
      layers, cache, tokens[:, t, None], position, slot_of[:, t], seen[:, None]
    )
    outputs.append(output)
  return jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *outputs)


@pytest.mark.parametrize("variant", ["plain", "deeper"])
@pytest.mark.parametrize("scattered", [False, True])
def test_the_cache_changes_no_result_wherever_its_slots_are(tiny_model, tokens, variant, scattered):
  config = dataclasses.replace(tiny_model, **VARIANTS[variant])
  params = random_params(config)
  start, slots = np.zeros(4), np.broadcast_to(np.arange(T), (B, T)).copy()
  if scattered:
    random = np.random.default_rng(0)
    slots[:, 4:] = [4 + random.permutation(T)[: T - 4] for _ in range(B)]
  cached = one_by_one(config, params, tokens, start, slots)
  whole = forward(config, params, tokens)
  for a, b in zip(cached, whole, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


def test_one_common_slot_is_the_same_as_that_slot_in_every_row(tiny_model, params, tokens):
  model, slots = bind(tiny_model, VOCAB, params), 5
  mask = jnp.broadcast_to(jnp.arange(slots) == 3, (B, 1, slots))
  results = [
    model.extend(
      model.unstack(),
      init_cache(tiny_model, B, slots),
      tokens[:, :1],
      jnp.zeros((B, 1), jnp.int32),
      slot,
      mask,
    )
    for slot in (jnp.int32(3), jnp.full(B, 3))
  ]
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(("N", "K"), [(2, 2), (4, 2), (4, 1)])
def test_attention_is_jax_nn_dot_product_attention(N, K):
  keys = jax.random.split(jax.random.key(0), 4)
  S, H = 7, 8
  q = jax.random.normal(keys[0], (B, T, N, H))
  k, v = (jax.random.normal(key, (B, K, S, H)) for key in keys[1:3])
  mask = jax.random.bernoulli(keys[3], 0.5, (B, T, S)).at[:, :, 0].set(True)
  ours = attention(q, k, v, mask)
  k, v = (x.transpose(0, 2, 1, 3) for x in (k, v))
  reference = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
  np.testing.assert_allclose(ours, reference, rtol=1e-5, atol=1e-5)


def test_a_query_that_may_look_nowhere_gives_numbers():
  x = jnp.ones((1, 1, 2, 4))
  kv = jnp.arange(24.0).reshape(1, 2, 3, 4)
  out = attention(x, kv, kv, jnp.zeros((1, 1, 3), bool))
  np.testing.assert_allclose(out[0, 0], kv[0].mean(axis=1), rtol=1e-6)


def test_rope_scores_depend_on_distance_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

  def score(i, j):
    place = lambda x, at: rope(x, rotation(jnp.full((1, 1), at), 8, 10_000.0))  # noqa: E731
    return float(jnp.sum(place(q, i) * place(k, j)))

  assert score(9, 4) == pytest.approx(score(5, 0), abs=1e-4)
  assert score(9, 4) != pytest.approx(score(9, 0), abs=1e-4)


def test_bfloat16_computes_low_and_speaks_float32(tiny_model, params, tokens):
  low = dataclasses.replace(tiny_model, dtype="bfloat16")
  assert init_cache(low, B, 3)[0][0].dtype == jnp.bfloat16
  a, b = forward(low, params, tokens), forward(tiny_model, params, tokens)
  assert a.logits.dtype == a.value_logits.dtype == jnp.float32
  np.testing.assert_allclose(a.logits, b.logits, atol=0.15)
  assert not np.array_equal(a.logits, b.logits)


def test_eight_devices_give_the_logits_of_one(tiny_model, params, tokens, mesh8):
  sharded = jax.device_put(params, param_shardings(tiny_model, VOCAB, mesh8))
  spread = forward(tiny_model, sharded, shard_batch(mesh8, np.asarray(tokens)))
  for a, b in zip(spread, forward(tiny_model, params, tokens), strict=True):
    assert len(a.sharding.device_set) == 8
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
