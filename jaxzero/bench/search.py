"""How fast the tree search is, beside plain decoding, whose cost it should have, and stock mctx."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxzero.bench.mctx_baseline import path_kv_search
from jaxzero.bench.timing import SIZES, VOCAB_SIZE, case, check, compile_timed, interleaved, result
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, bind, init_params
from jaxzero.search import game as game_lib
from jaxzero.search import mcts
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.game import Game
from jaxzero.search.networks import Recompute, TreeCache
from jaxzero.search.rules import Unverified

PROMPT, COMPLETION = 16, 34  # slots that the quickstart reserves
NO_END = -1  # random weights would end at once: every simulation makes a node


def bench_search(
  batch_sizes: Sequence[int] = (64,),
  sizes: Sequence[str] = ("0.7M",),
  num_simulations: int = 64,
  num_candidates: int = 16,
  parallel: str = "lazy",
  repeats: int = 7,
) -> dict[str, Any]:
  """Simulations/s of Gumbel MuZero search (one simulation = one node) beside its baselines.

  `decode`: plain greedy decoding on a cache of equal length; `sequential`: our loop, a leaf at a
  time; `mctx`: the stock loop on our KV tree; `mctx_recompute`: mctx, every leaf from the start;
  `mctx_path_kv`: mctx with the whole path's keys and values in the embedding. All put the same
  number of positions through the same model with random weights, from the same prefilled prompts.
  One call each in turn, `repeats` times; figures are medians.

  Args:
    batch_sizes, sizes: a case for each pair.
    num_simulations: simulations of one search, and steps of the decoding loop.
    num_candidates: A; as many are considered at the root, at most 16.
    parallel: `lazy`, `exact` or `none`, see TreeConfig.
    repeats: timed calls of each, after one to compile.

  Returns:
    {"host", "versions", "cases": [{"name", "params", "batch", "num_simulations", "forwards",
    "positions", "compile_s": {name: s}, "tokens_per_s", "baselines", "ratios"}]}.

  Raises:
    UserError: a size below 1, or a search that cannot run.
  """
  check(batch_sizes, sizes, repeats)
  config = TreeConfig(
    order="gumbel",
    num_simulations=num_simulations,
    num_candidates=num_candidates,
    max_considered=min(16, num_candidates),
    parallel=parallel,
  )
  config.check(VOCAB_SIZE)
  cases = [_case(SIZES[size], config, batch, repeats) for size in sizes for batch in batch_sizes]
  return result(cases, ["mctx"])


def _case(model: ModelConfig, config: TreeConfig, batch: int, repeats: int) -> dict[str, Any]:
  param_key, prompt_key, noise_key = jax.random.split(jax.random.key(1), 3)
  params = init_params(model, VOCAB_SIZE, param_key)
  prompts = jax.random.randint(prompt_key, (batch, PROMPT), 0, VOCAB_SIZE)
  gumbel = jax.random.gumbel(noise_key, (batch, VOCAB_SIZE))
  game = jax.jit(functools.partial(_prefill, model, config))(params, prompts)
  plain = dataclasses.replace(config, parallel="none")
  stock = dataclasses.replace(plain, backend="mctx")
  runs: dict[str, Callable[..., Any]] = {
    "search": functools.partial(tree_search, model, config, True),
    "decode": functools.partial(greedy_decode, model, config.num_simulations),
    "sequential": functools.partial(tree_search, model, plain, True),
    "mctx": functools.partial(tree_search, model, stock, True),
    "mctx_recompute": functools.partial(tree_search, model, stock, False),
    "mctx_path_kv": functools.partial(path_kv_search, model, stock),
  }
  calls: dict[str, Callable[[], Any]] = {}
  compile_s: dict[str, float] = {}
  for name, run in runs.items():
    compiled, compile_s[name] = compile_timed(run, params, game, gumbel)
    calls[name] = functools.partial(compiled, params, game, gumbel)
  seconds = interleaved(calls, repeats)
  out = calls["search"]()
  positions = batch * config.num_simulations
  return {
    **case("search", model.parameters(VOCAB_SIZE), batch, positions, seconds),
    "num_simulations": config.num_simulations,
    "num_candidates": config.num_candidates,
    "forwards": int(out["forwards"]),
    "positions": int(out["positions"]),
    "compile_s": compile_s,
  }


def _prefill(model: ModelConfig, config: TreeConfig, params: Params, prompts: jax.Array) -> Game:
  net = bind(model, VOCAB_SIZE, params)
  length = jnp.full(prompts.shape[0], PROMPT, jnp.int32)
  judge = jnp.zeros((prompts.shape[0], 1), jnp.int32)
  slots = mcts.tree_slots(config)
  return game_lib.start(net, net.unstack(), prompts, length, judge, COMPLETION, tree_slots=slots)


def tree_search(
  model: ModelConfig,
  config: TreeConfig,
  tree_cache: bool,
  params: Params,
  game: Game,
  gumbel: jax.Array,
) -> dict[str, jax.Array]:
  """One search from the prompts, on the tree's KV cache or recomputing."""
  net = bind(model, VOCAB_SIZE, params)
  network = TreeCache(net, net.unstack(), game) if tree_cache else Recompute(net, game)
  weights = make_weights(config, 1.0)
  out = mcts.search(game, network, config, gumbel, Unverified(NO_END), game.judge, weights)
  return {name: getattr(out, name) for name in ("token", "weights", "forwards", "positions")}


def greedy_decode(
  model: ModelConfig, steps: int, params: Params, game: Game, gumbel: jax.Array
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

  tokens = jnp.zeros((batch, steps), jnp.int32)
  return jax.lax.fori_loop(0, steps, step, (game.cache, game.logits, tokens))[2]
