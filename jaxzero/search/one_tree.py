"""One tree a problem, grown along its paths with all of the budget."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.progress import bar
from jaxzero.search.choose import Finished, finished
from jaxzero.search.engine import Engine
from jaxzero.search.pool import think
from jaxzero.search.request import Request, SearchResult
from jaxzero.search.think import Insight


def run(request: Request) -> list[SearchResult]:
  """Grows the trees, and chooses among the completions that ended in each."""
  return grow(request)[0]


def grow(request: Request, keep_trees: int = 0) -> tuple[list[SearchResult], list[Any]]:
  """The results, and the records of the first `keep_trees` problems' trees."""
  if request.samples is not None:
    raise UserError(
      f"samples={request.samples} counts tries, and {request.strategy} grows one tree; leave it "
      "out, or give a budget."
    )
  engine, count = request.engine, len(request.problems)
  # Few sizes of tree, so that budgets share compiled functions; the limit is the budget's own.
  capacity = max(64, 1 << (request.positions - 1).bit_length())
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
    jax.random.key(request.seed), request.key_numbers
  )
  with bar(f"{request.strategy}, budget {request.budget}", count, "problems") as progress:
    thinking = think(
      engine,
      request.params,
      request.asked,
      keys,
      request.caps,
      request.settings.tree.along_paths(request.order, capacity),
      request.inside,
      # Sampling is noise from the root down; the other orders take what looks best.
      noise=1.0 if request.order == "without_replacement" else 0.0,
      temperature=request.temperature,
      batch_size=request.batch_size,
      keep_trees=keep_trees,
      compact=True,
      progress=progress.advance,
    )
  insight: Any = thinking.insight  # numpy
  flops = engine.flops(thinking.positions) / count
  results = [
    request.result(
      i,
      completions(engine, insight, i, request.inside),
      insight.played.completion[i, : insight.played.length[i]].tolist(),
      insight.forward_tokens[i],
      flops,
    )
    for i in range(count)
  ]
  return results, thinking.trees


def completions(engine: Engine, insight: Insight, i: int, inside: bool) -> list[Finished]:
  """The completions that ended in problem i's tree, first ended first."""
  sketch: Any = insight.sketch
  parent, token, value = (x[i].tolist() for x in (sketch.parent, sketch.token, sketch.value))
  found = []
  for node in np.flatnonzero(sketch.ended[i]).tolist():
    path, at = [], node
    while at > 0:
      path.append(at)
      at = parent[at]
    path.reverse()
    one = finished(
      engine.tokenizer,
      [token[n] for n in path],
      [value[n] for n in path],
      spent=node * engine.tokens_per_position,  # a tree's nodes are numbered as they are paid for
      right=bool(sketch.right[i, node]) if inside else None,
      log_p=float(sketch.log_p[i, node]),
    )
    if one is not None:
      found.append(one)
  return found
