"""A policy and a reward model read as one: the one's logits, the other's values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.models.scored import ScoredModel
from jaxzero.models.transformer import bind, init_params

B, T, SLOTS, V = 2, 3, 5, 11


def test_logits_are_the_policys_and_values_the_reward_models(tiny_model):
  smaller = dataclasses.replace(tiny_model, num_layers=1, embed_dim=16)
  shapes = {"policy": tiny_model, "prm": smaller}
  params = {
    name: init_params(shape, V, jax.random.key(i)) for i, (name, shape) in enumerate(shapes.items())
  }
  params["prm"]["value"] = jnp.ones_like(params["prm"]["value"])

  @jax.jit
  def read(params, tokens):
    alone = {name: bind(shape, V, params[name]) for name, shape in shapes.items()}
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask = jnp.broadcast_to(jnp.arange(SLOTS) <= positions[..., None], (B, T, SLOTS))

    def extended(model):
      cache = model.init_cache(B, SLOTS)
      return model.extend(model.unstack(), cache, tokens, positions, jnp.int32(0), mask)

    return extended(ScoredModel(**alone)), {name: extended(one) for name, one in alone.items()}

  tokens = jnp.arange(B * T, dtype=jnp.int32).reshape(B, T)
  (output, cache), alone = read(params, tokens)
  np.testing.assert_array_equal(output.logits, alone["policy"][0].logits)
  np.testing.assert_array_equal(output.value_logits, alone["prm"][0].value_logits)
  assert not np.allclose(output.value_logits, alone["policy"][0].value_logits)
  both = alone["policy"][1] + alone["prm"][1]
  jax.tree.map(np.testing.assert_array_equal, cache, both)
