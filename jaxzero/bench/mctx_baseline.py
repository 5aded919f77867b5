"""What mctx's public API suggests at first: the whole path's keys and values in the embedding."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import mctx

from jaxzero.bench.timing import VOCAB_SIZE
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, bind
from jaxzero.search.config import TreeConfig
from jaxzero.search.game import Game, prefix_slots
from jaxzero.search.select import qtransform


def path_kv_search(
  model: ModelConfig, config: TreeConfig, params: Params, game: Game, gumbel: jax.Array
) -> jax.Array:
  """`mctx.gumbel_muzero_policy` whose nodes hold their own prefix caches; the root's weights."""
  net = bind(model, VOCAB_SIZE, params)
  layers, slots = net.unstack(), prefix_slots(game)
  logits, root_candidates = jax.lax.top_k(game.logits + gumbel, config.num_candidates)
  logits -= jnp.take_along_axis(gumbel, root_candidates, axis=1)

  def recurrent_fn(_, rng, action, node):
    del rng
    cache, candidates, length = node
    token = jnp.take_along_axis(candidates, action[:, None], axis=1)
    # A path longer than the slots would write its last one again: equal work.
    position = jnp.minimum(length, slots - 1)
    mask = (jnp.arange(slots) <= position[:, None])[:, None]
    output, cache = net.extend(layers, cache, token, position[:, None], position, mask)
    top, candidates = jax.lax.top_k(output.logits[:, 0], config.num_candidates)
    out = mctx.RecurrentFnOutput(
      reward=jnp.zeros(len(token)),
      discount=jnp.ones(len(token)),
      prior_logits=top - jax.nn.logsumexp(output.logits[:, 0], axis=-1, keepdims=True),
      value=jax.nn.sigmoid(output.value_logits[:, 0]),
    )
    return out, (cache, candidates, length + 1)

  cache = tuple((k[:, :, :slots], v[:, :, :slots]) for k, v in game.cache)
  embedding = (cache, root_candidates, game.prompt_length)
  policy = functools.partial(
    mctx.gumbel_muzero_policy,
    recurrent_fn=recurrent_fn,
    num_simulations=config.num_simulations,
    qtransform=qtransform(config),
    max_num_considered_actions=config.max_considered,
  )
  root = mctx.RootFnOutput(prior_logits=logits, value=game.value, embedding=embedding)
  return policy(None, jax.random.key(0), root).action_weights
