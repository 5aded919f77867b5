"""What a compiled search holds: one KV cache, and little beside it."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import bind, init_params
from jaxzero.search import game as game_lib
from jaxzero.search import mcts
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.networks import TreeCache
from jaxzero.search.rules import Unverified

B, V, P, C = 64, 64, 16, 34
CONFIG = TreeConfig(order="gumbel", num_simulations=64)


def size(tree):
  return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("parallel", ["none", "lazy"])
def test_a_search_holds_its_cache_once(parallel):
  """The quickstart's model from the prompts to the tree; a second cache would not fit."""
  model, config = ModelConfig(), dataclasses.replace(CONFIG, parallel=parallel)

  def search(params, prompts, length, gumbel):
    net = bind(model, V, params)
    layers, judge = net.unstack(), jnp.zeros((B, 1), jnp.int32)
    slots = mcts.tree_slots(config)
    game = game_lib.start(net, layers, prompts, length, judge, C, tree_slots=slots)
    network, weights = TreeCache(net, layers, game), make_weights(config, 1.0)
    return mcts.search(game, network, config, gumbel, Unverified(2), judge, weights)

  inputs = (
    jax.eval_shape(lambda: init_params(model, V, jax.random.key(0))),
    jax.ShapeDtypeStruct((B, P), jnp.int32),
    jax.ShapeDtypeStruct((B,), jnp.int32),
    jax.ShapeDtypeStruct((B, V), jnp.float32),
  )
  out = jax.eval_shape(search, *inputs)
  slots = P + C + mcts.tree_slots(config) + 1
  cache = model.num_layers * 2 * B * model.num_kv_heads * slots * model.head_dim * 4
  assert size(out.state) == cache
  memory = jax.jit(search).lower(*inputs).compile().memory_analysis()
  held = (
    memory.argument_size_in_bytes
    + memory.output_size_in_bytes
    + memory.temp_size_in_bytes
    - memory.alias_size_in_bytes
  )
  needed = size(inputs[0]) + cache + size(out.tree)
  assert held < needed + 0.75 * cache, (held / needed, held, needed)
