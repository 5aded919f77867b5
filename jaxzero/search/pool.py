"""Many problems through few rows: a row that is done gets the next problem at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import fetch
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine, make_weights
from jaxzero.search.think import Insight
from jaxzero.tasks.base import Problem

REFILL = 32
"""A batch is refilled by thirty-seconds: rows wait until so many are done."""


@dataclasses.dataclass
class Thinking:
  """What many problems came to, in their order."""

  insight: Insight  # numpy, [n, ...]
  trees: list[Any]  # the first problems' trees, host arrays of one row
  positions: float  # put through the model, prompts and idle rows too
  occupancy: float  # share of the positions after the prompts that made a node

  def given(self, i: int) -> tuple[list[int], bool]:
    """What problem i is answered with, and the verdict: the answer, else the game as played."""
    out: Any = self.insight
    found = out.answer.found[i]
    source, right = (out.answer, out.answer_right) if found else (out.played, out.played_right)
    return source.completion[i, : source.length[i]].tolist(), bool(right[i])


def think(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  keys: jax.Array,
  limit: int | np.ndarray,
  config: TreeConfig,
  verify_inside: bool,
  noise: float = 0.0,
  temperature: float = 1.0,
  batch_size: int = 128,
  keep_trees: int = 0,
  refill: int = REFILL,
  progress: Callable[[float], Any] = lambda count: None,
) -> Thinking:
  """Grows one tree a problem, up to `limit` nodes each (one number, or [n] int32).

  Args:
    keys: [n] typed PRNG keys, one a problem, consumed.
    noise: scale of the Gumbel noise on the root's edges.
    temperature: of the policy that the search follows.
    keep_trees: how many of the first problems' trees to return.
    refill: rows wait for each other until one in so many is done; 1: a batch at a time.
    progress: told of the problems that were finished.
  """
  shards, count = batch_shards(engine.mesh), len(problems)
  chunk = engine.rows(max(1, min(batch_size, count) // refill))
  rows = chunk * max(1, -(-min(batch_size, count) // chunk))
  thinker = engine.thinker(config, verify_inside)
  params, weights = engine.gather(params), make_weights(config, temperature)
  raw_keys = np.asarray(jax.random.key_data(keys))
  limits = np.broadcast_to(np.int32(limit), count)

  def fresh(begin: int, size: int) -> Any:
    index = list(range(begin, min(begin + size, count)))
    batch = engine.encode([problems[i] for i in index] or list(problems[:1]), size)
    batch["prompt_length"][len(index) :] = 0
    number = np.full(size, -1, np.int32)
    number[: len(index)] = index
    row_keys = np.zeros((size, raw_keys.shape[1]), np.uint32)
    row_keys[: len(index)] = raw_keys[index]
    batch |= {
      "number": number,
      "keys": row_keys,
      "limit": np.resize(limits[index], size) if index else np.zeros(size, np.int32),
      "noise": np.full(size, noise, np.float32),
    }
    return thinker.start(params, shard_batch(engine.mesh, batch), weights)

  thoughts, given, finished = fresh(0, rows), rows, 0
  nobody = fresh(count, chunk)
  gathered: dict[int, Insight] = {}
  trees: dict[int, Any] = {}
  prompts = rows + chunk
  while finished < count:
    quota = chunk // shards if given < count else rows // shards
    thoughts = thinker.advance(params, thoughts, weights, np.int32(quota))
    following = fresh(given, chunk) if given < count else nobody
    thoughts, insight, tree = thinker.swap(params, thoughts, following, weights)
    prompts += chunk if given < count else 0
    given += chunk
    host = fetch(insight)
    wanted = [r for r, n in enumerate(host.number) if 0 <= n < keep_trees]
    if wanted:
      tree = fetch(tree)
    for row, number in enumerate(host.number.tolist()):
      if number >= 0:
        gathered[number] = jax.tree.map(lambda x, row=row: x[row], host)
    for row in wanted:
      trees[int(host.number[row])] = jax.tree.map(lambda x, row=row: x[row], tree)
    progress(len(gathered) - finished)
    finished = len(gathered)
  order = [gathered[number] for number in range(count)]
  merged = jax.tree.map(lambda *x: np.stack(x), *order)
  steps = float(fetch(thoughts.positions).sum())
  return Thinking(
    insight=merged,
    trees=[trees[number] for number in sorted(trees)],
    positions=steps + prompts * engine.max_prompt,
    occupancy=float(merged.forward_tokens.sum()) / max(steps, 1.0),
  )
