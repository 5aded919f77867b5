"""How fast self-play grows its trees, beside plain decoding and rows that wait for a batch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxzero import tasks
from jaxzero.bench.timing import SIZES, VOCAB_SIZE, case, check, interleaved, result
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import init_params
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine
from jaxzero.search.pool import REFILL, think
from jaxzero.tasks.base import TaskConfig
from jaxzero.tokenizers import Tokenizer

EPISODES_PER_ROW = 8
PROMPT, COMPLETION = 16, 30  # slots that the quickstart reserves


def bench_selfplay(
  batch_sizes: Sequence[int] = (64,),
  sizes: Sequence[str] = ("0.7M",),
  num_simulations: int = 96,
  repeats: int = 7,
) -> dict[str, Any]:
  """Nodes/s of self-play on Countdown with random weights, rows refilled as they finish.

  Each problem may spend a random number of nodes, a quarter to all of `num_simulations`, as
  solved and unsolved games do. `batch_at_a_time`: the same games, but no row is refilled before
  all are done. `decode`: tokens/s of plain sampling to the longest completion.

  Args:
    batch_sizes, sizes: a case for each pair.
    repeats: timed calls of each, after one to compile.

  Returns:
    See `timing.result`; a case also has `occupancy`, the share of positions that made a node.

  Raises:
    UserError: a size below 1 or without a preset.
  """
  check(batch_sizes, sizes, repeats)
  TreeConfig(num_simulations=num_simulations).check(VOCAB_SIZE)
  return result(
    [_case(SIZES[size], batch, num_simulations, repeats) for size in sizes for batch in batch_sizes]
  )


def _case(model: ModelConfig, batch: int, num_simulations: int, repeats: int) -> dict[str, Any]:
  task = tasks.make(TaskConfig())
  count = EPISODES_PER_ROW * batch
  problems = [task.problem("train", 0, index) for index in range(count)]
  tokenizer = Tokenizer.train([problem.prompt for problem in problems])
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  engine = Engine(model, tokenizer, task, mesh, PROMPT, COMPLETION)
  params = init_params(model, tokenizer.vocab_size, jax.random.key(0))
  config = TreeConfig(order="without_replacement", num_simulations=num_simulations)
  random = np.random.default_rng(0)
  limits = random.integers(max(1, num_simulations // 4), num_simulations + 1, count)
  keys = jax.random.split(jax.random.key(1), count)

  def play(refill: int):
    return think(
      engine,
      params,
      problems,
      keys,
      limits,
      config,
      verify_inside=False,
      noise=1.0,
      batch_size=batch,
      refill=refill,
    )

  def decode() -> list[Any]:
    return [
      engine.decode(
        params,
        engine.encode(problems[begin : begin + batch], batch),
        keys[begin : begin + batch],
        1.0,
      )
      for begin in range(0, count, batch)
    ]

  calls: dict[str, Callable[[], Any]] = {
    "selfplay": functools.partial(play, REFILL),
    "batch_at_a_time": functools.partial(play, 1),
    "decode": decode,
  }
  seconds = interleaved(calls, repeats)
  nodes = int(play(REFILL).insight.forward_tokens.sum())
  decoded = sum(int(out["length"].sum()) for out in decode())
  seconds["decode"] *= nodes / decoded  # the time it would take for as many tokens
  return {
    **case("selfplay", model.parameters(tokenizer.vocab_size), batch, nodes, seconds),
    "occupancy": play(REFILL).occupancy,
    "num_simulations": num_simulations,
  }
