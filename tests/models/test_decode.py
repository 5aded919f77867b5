"""What a decoding loop must not do: copy its cache, or talk more than its weights' split asks."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzero.models.attention import attention, einsum_attention, one_token_attention
from jaxzero.models.cache import init_cache
from jaxzero.models.transformer import bind, init_params, param_shardings
from jaxzero.parallel.mesh import MeshConfig, make_mesh

VOCAB, B, SLOTS = 64, 8, 24


@pytest.mark.parametrize(("N", "K"), [(2, 2), (4, 2), (4, 1)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_form_of_attention_is_the_reference(N, K, dtype):
  keys = jax.random.split(jax.random.key(0), 4)
  S, H = 7, 8
  q = jax.random.normal(keys[0], (B, 1, N, H), dtype)
  k, v = (jax.random.normal(key, (B, K, S, H), dtype) for key in keys[1:3])
  mask = jax.random.bernoulli(keys[3], 0.5, (B, 1, S)).at[0].set(False)
  reference = einsum_attention(q, k, v, mask)
  tolerance = 1e-6 if dtype == "float32" else 1e-2
  for form in (one_token_attention, attention, jax.jit(attention)):
    out = form(q, k, v, mask)
    assert out.dtype == q.dtype
    np.testing.assert_allclose(
      out.astype(jnp.float32), reference.astype(jnp.float32), rtol=tolerance, atol=tolerance
    )


def decode(config, scattered, params, cache, tokens):
  """Greedy decoding; scattered: every row writes at its own slot."""
  model = bind(config, VOCAB, params)
  layers, rows = model.unstack(), tokens.shape[0]

  def step(index, carry):
    cache, token = carry
    slot = jnp.full(rows, index) + jnp.arange(rows) % 3 if scattered else index
    mask = jnp.broadcast_to(jnp.arange(SLOTS) <= index, (rows, 1, SLOTS))
    positions = jnp.full((rows, 1), index)
    output, cache = model.extend(layers, cache, token[:, None], positions, slot, mask)
    return cache, jnp.argmax(output.logits[:, 0], axis=-1)

  return jax.lax.fori_loop(0, SLOTS - 3, step, (cache, tokens))[1]


def loop_bodies(text):
  """The optimized computations that the while loops of an HLO module run."""
  computations = dict(re.findall(r"^%?(\S+) \([^\n]*\{\n(.*?)^\}", text, re.M | re.S))
  return [computations[name] for name in re.findall(r"body=%?([\w.\-]+)", text)]


@pytest.mark.parametrize("scattered", [False, True])
def test_no_cache_is_copied_inside_the_loop(tiny_model, scattered):
  params = jax.eval_shape(lambda: init_params(tiny_model, VOCAB, jax.random.key(0)))
  cache = jax.eval_shape(lambda: init_cache(tiny_model, B, SLOTS))
  tokens = jax.ShapeDtypeStruct((B,), jnp.int32)
  run = jax.jit(functools.partial(decode, tiny_model, scattered))
  bodies = loop_bodies(run.lower(params, cache, tokens).compile().as_text())
  assert bodies
  shape = "f32[" + ",".join(map(str, cache[0][0].shape)) + "]"
  copies = [
    line
    for body in bodies
    for line in body.splitlines()
    if re.search(r" copy\(|wrapped_copy", line)
  ]
  assert not [line for line in copies if shape in line]


def test_fused_weights_add_no_collective_to_a_split_over_tensor(tiny_model):
  """A layer needs two all-reduces, behind `o` and `down`; a decoding loop must hold no others."""
  mesh = make_mesh(MeshConfig(data=1, fsdp=1, tensor=2), jax.devices()[:2])
  shardings = param_shardings(tiny_model, VOCAB, mesh)
  params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    jax.eval_shape(lambda: init_params(tiny_model, VOCAB, jax.random.key(0))),
    shardings,
  )
  run = jax.jit(
    lambda params, tokens: decode(
      tiny_model, False, params, init_cache(tiny_model, B, SLOTS), tokens
    )
  )
  text = run.lower(params, jax.ShapeDtypeStruct((B,), jnp.int32)).compile().as_text()
  collectives = (
    r"= \S+ (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("
  )
  inside = [found for body in loop_bodies(text) for found in re.findall(collectives, body)]
  assert inside == ["all-reduce"] * 2 * tiny_model.num_layers
