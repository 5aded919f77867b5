"""How fast the search is, beside the plain decoding whose cost it should have."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxzero.bench.timing import VOCAB_SIZE, case, check, interleaved, result
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, bind, init_params
from jaxzero.search import game as game_lib
from jaxzero.search import mcts
from jaxzero.search.game import Game
from jaxzero.search.networks import Recompute, TreeCache

PROMPT, COMPLETION = 16, 34  # slots that the quickstart reserves
END_ID = 2


def bench_search(
  batch_sizes: Sequence[int] = (64,), num_simulations: int = 32, repeats: int = 7
) -> dict[str, Any]:
  """Simulations/s of the tree search, decoded tokens/s and the recomputing oracle's simulations/s.

  All three put the same number of positions through the default model with random weights, from
  the same prefilled prompts; search and decode work on caches of equal length. One call each in
  turn, `repeats` times; figures are medians.

  Args:
    batch_sizes: one case each.
    num_simulations: simulations of one search, and steps of the decoding loop.
    repeats: timed calls of each, after one to compile.

  Returns:
    {"host", "versions", "cases": [{"name", "params", "batch", "num_simulations", "tokens_per_s",
    "baselines": {name: tokens_per_s}, "ratios": {name: ratio}}]}.

  Raises:
    UserError: a size below 1, or a search that cannot run.
  """
  check(batch_sizes, ["0.7M"], repeats)
  config = mcts.MCTSConfig(num_simulations=num_simulations)
  config.check(VOCAB_SIZE)
  model = ModelConfig()
  params = init_params(model, VOCAB_SIZE, jax.random.key(0))
  cases = [_case(model, params, config, batch, repeats) for batch in batch_sizes]
  return result(cases, ["mctx"])


def _case(
  model: ModelConfig, params: Params, config: mcts.MCTSConfig, batch: int, repeats: int
) -> dict[str, Any]:
  prompt_key, noise_key = jax.random.split(jax.random.key(1))
  prompts = jax.random.randint(prompt_key, (batch, PROMPT), 0, VOCAB_SIZE)
  gumbel = jax.random.gumbel(noise_key, (batch, VOCAB_SIZE))
  game = jax.jit(functools.partial(_prefill, model, config))(params, prompts)
  runs: dict[str, Callable[..., Any]] = {
    "search": functools.partial(_search, model, config, True),
    "decode": functools.partial(_decode, model, config),
    "mctx_recompute": functools.partial(_search, model, config, False),
  }
  calls: dict[str, Callable[[], Any]] = {
    name: functools.partial(jax.jit(run), params, game, gumbel) for name, run in runs.items()
  }
  seconds = interleaved(calls, repeats)
  positions = batch * config.num_simulations
  of_search = case("search", model.parameters(VOCAB_SIZE), batch, positions, seconds)
  return {**of_search, "num_simulations": config.num_simulations}


def _prefill(
  model: ModelConfig, config: mcts.MCTSConfig, params: Params, prompts: jax.Array
) -> Game:
  net = bind(model, VOCAB_SIZE, params)
  length = jnp.full(prompts.shape[0], PROMPT, jnp.int32)
  slots = config.num_simulations
  return game_lib.start(net, net.unstack(), prompts, length, COMPLETION, tree_slots=slots)


def _search(
  model: ModelConfig,
  config: mcts.MCTSConfig,
  tree_cache: bool,
  params: Params,
  game: Game,
  gumbel: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  net = bind(model, VOCAB_SIZE, params)
  network = TreeCache(net, net.unstack(), game) if tree_cache else Recompute(net, game)
  out = mcts.search(game, network, config, gumbel, END_ID, verify=None)
  return out.token, out.weights


def _decode(
  model: ModelConfig, config: mcts.MCTSConfig, params: Params, game: Game, gumbel: jax.Array
) -> jax.Array:
  """Greedy decoding at its leanest: all rows in step, so that the cache is written in place."""
  del gumbel
  net = bind(model, VOCAB_SIZE, params)
  layers = net.unstack()
  batch, slots = game.prompts.shape[0], game.cache[0][0].shape[2]

  def step(index, carry):
    cache, logits, tokens = carry
    position = PROMPT + index
    token = jnp.argmax(logits, axis=-1)
    mask = jnp.broadcast_to(jnp.arange(slots) <= position, (batch, 1, slots))
    positions = jnp.full((batch, 1), position)
    output, cache = net.extend(layers, cache, token[:, None], positions, position, mask)
    return cache, output.logits[:, 0], tokens.at[:, index].set(token)

  tokens = jnp.zeros((batch, config.num_simulations), jnp.int32)
  carry = (game.cache, game.logits, tokens)
  return jax.lax.fori_loop(0, config.num_simulations, step, carry)[2]
