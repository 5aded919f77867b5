"""Many problems through few rows: a row that is done gets the next problem at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.models.transformer import Params
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.rows import HostRows
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine, make_weights
from jaxzero.search.think import Insight
from jaxzero.tasks.base import Problem

REFILL = 32
"""A batch is refilled by thirty-seconds: rows wait until so many are done."""


@dataclasses.dataclass
class Thinking:
  """What many problems came to, in their order: all of them, or this host's share."""

  insight: Insight  # numpy, [n, ...]
  trees: list[Any]  # of those of the first problems that are here: a `Tree` or `Record` of one row
  positions: float  # put through the model, prompts and idle rows too
  occupancy: float  # share of the positions after the prompts that made a node


def think(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  keys: jax.Array,
  limit: int | np.ndarray,
  config: TreeConfig,
  verify_inside: bool,
  stop_when_found: bool = True,
  noise: float = 0.0,
  temperature: float = 1.0,
  batch_size: int = 128,
  keep_trees: int = 0,
  compact: bool = False,
  refill: int = REFILL,
  progress: Callable[[float], Any] = lambda count: None,
  everywhere: bool = True,
) -> Thinking:
  """Grows one tree a problem, up to `limit` nodes each (one number, or [n] int32).

  Each host thinks about its share of the problems (`HostRows.share`), in its rows.

  Args:
    keys: [n] typed PRNG keys, one a problem, consumed.
    stop_when_found: a tree that hears the verifier is done at its first right end.
    noise: scale of the Gumbel noise on the root's edges.
    temperature: of the policy that the search follows.
    keep_trees: how many of the first problems' trees to return.
    compact: trees are returned as `Record`s, all that the data set needs of them.
    refill: rows wait for each other until one in so many is done; 1: a batch at a time.
    progress: told of the problems that were finished, at the same points on every host.
    everywhere: whether every host gets what all problems came to, or only those of its share.
  """
  hosts, shards = HostRows(engine.mesh), batch_shards(engine.mesh)
  longest = -(-len(problems) // hosts.parts)
  chunk = engine.rows(max(1, min(batch_size, len(problems)) // refill))
  rows = chunk * max(1, -(-min(batch_size, len(problems)) // chunk))
  thinker = engine.thinker(config, verify_inside, stop_when_found)
  params, weights = engine.gather(params), make_weights(config, temperature)
  queue = _Queue(engine, hosts, problems, keys, limit, noise)

  def fresh(begin: int, size: int) -> Any:
    return thinker.start(params, queue.batch(begin, size), weights)

  own_rows, own_chunk = rows // hosts.parts, chunk // hosts.parts
  thoughts, given = fresh(0, own_rows), own_rows
  nobody = fresh(longest, own_chunk)
  own: dict[int, Any] = {}
  trees: dict[int, Any] = {}
  prompts, finished = rows + chunk, 0
  while finished < len(problems):
    left = given < longest  # the same on every host
    quota = np.int32((chunk if left else rows) // shards)
    thoughts = thinker.advance(params, thoughts, weights, quota)
    following = fresh(given, own_chunk) if left else nobody
    thoughts, insight, tree = thinker.swap(params, thoughts, following, weights)
    prompts += chunk if left else 0
    given += own_chunk
    host = hosts.take(insight)
    own |= {n: _row(host, row) for row, n in enumerate(host.number.tolist()) if n >= 0}
    if any(0 <= n < keep_trees for n in host.number):
      kept = hosts.take(thinker.record(tree) if compact else tree)
      trees |= {
        n: _row(kept, row) for row, n in enumerate(host.number.tolist()) if 0 <= n < keep_trees
      }
    before, finished = finished, hosts.total(len(own))
    progress(finished - before)
  tokens = hosts.total(sum(int(one.forward_tokens) for one in own.values()))
  steps = hosts.total(int(hosts.take(thoughts.positions).sum()))
  if everywhere:
    results = hosts.gather(own, _one(insight), len(problems), len(problems))
    like = _one(jax.eval_shape(thinker.record, tree) if compact else tree)
    kept_trees = hosts.gather(trees, like, min(keep_trees, len(problems)), len(problems))
  else:
    results, kept_trees = [own[n] for n in queue.share], [trees[n] for n in sorted(trees)]
  return Thinking(
    insight=jax.tree.map(lambda *x: np.stack(x), *results),
    trees=kept_trees,
    positions=float(steps + prompts * engine.max_prompt),
    occupancy=tokens / max(steps, 1),
  )


class _Queue:
  """This host's share of the problems, as batches in its rows."""

  def __init__(
    self,
    engine: Engine,
    hosts: HostRows,
    problems: Sequence[Problem],
    keys: jax.Array,
    limit: int | np.ndarray,
    noise: float,
  ):
    self.engine, self.hosts, self.problems, self.noise = engine, hosts, problems, noise
    self.share = hosts.share(len(problems))
    self.keys = np.asarray(jax.random.key_data(keys))
    self.limits = np.broadcast_to(np.int32(limit), len(problems))

  def batch(self, begin: int, size: int) -> Any:
    """The share's problems begin..begin+size-1 on the mesh; rows beyond them have number -1."""
    index = list(self.share[begin : begin + size])
    batch = self.engine.encode([self.problems[i] for i in index] or [self.problems[0]], size)
    batch["prompt_length"][len(index) :] = 0
    number = np.full(size, -1, np.int32)
    number[: len(index)] = index
    keys = np.zeros((size, self.keys.shape[1]), np.uint32)
    keys[: len(index)] = self.keys[index]
    limits = np.zeros(size, np.int32)
    limits[: len(index)] = self.limits[index]
    noise = np.full(size, self.noise, np.float32)
    return self.hosts.put(
      {**batch, "number": number, "keys": keys, "limit": limits, "noise": noise}
    )


def _row(tree: Any, row: int) -> Any:
  return jax.tree.map(lambda x: x[row], tree)


def _one(tree: Any) -> Any:
  """The shapes of one row."""
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), tree)
