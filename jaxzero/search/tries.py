"""Whole completions: decoded, grown in lanes or played; tried again until the budget is spent."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxzero.progress import bar
from jaxzero.search.choose import Finished, finished
from jaxzero.search.config import IN_LANES
from jaxzero.search.mcts import tree_slots
from jaxzero.search.request import ONE_TRY, TRIES, Request, SearchResult

_FEWEST = 16
"""Rows of the smallest batch. Each size is compiled once, so they are powers of two."""


def run(request: Request) -> list[SearchResult]:
  """Tries again what is neither solved nor out of budget, in batches that shrink with it."""
  if request.strategy == "majority":
    choice = dataclasses.replace(request.choice, vote="majority")
    request = dataclasses.replace(request, choice=choice)
  tries, count = _Tries(request), len(request.problems)
  size = tries.size
  attempt, unsettled = 0, np.arange(count)
  with bar(f"{request.strategy}, budget {request.budget}", count, "problems") as progress:
    while len(unsettled):
      for begin in range(0, len(unsettled), size):
        index = unsettled[begin : begin + size]
        tries.batch(index, attempt)
        progress.advance(len(index) - int(tries.goes_on(index, attempt + 1).sum()))
      attempt += 1
      unsettled = unsettled[tries.goes_on(unsettled, attempt)]
  return tries.results()


class _Tries:
  """What the problems have left, and what they have finished."""

  def __init__(self, request: Request):
    self.request, self.engine = request, request.engine
    self.params = request.engine.gather(request.params)
    self.problems = request.asked
    count = len(self.problems)
    # A batch has so many rows in the model, whatever lanes a problem has.
    lanes = self._lane_count(request.positions) if request.strategy in IN_LANES else 1
    self.size = max(1, request.batch_size // lanes)
    self.rows = self.engine.rows(min(self.size, count))
    self.fewest = max(1, _FEWEST // lanes)
    self.left = request.caps.copy()
    self.flops = np.zeros(count)
    self.settled = np.zeros(count, bool)
    self.finished: list[list[Finished]] = [[] for _ in range(count)]
    self.first: list[list[int]] = [[] for _ in range(count)]
    self.most = 1 if request.strategy in ONE_TRY else request.samples

  def goes_on(self, index: np.ndarray, attempt: int) -> np.ndarray:
    """[n] bool: which of the problems of these numbers get this attempt, too."""
    allowed = self.most is None or attempt < self.most
    return allowed & ~self.settled[index] & (self.left[index] > 0)

  def batch(self, index: np.ndarray, attempt: int) -> None:
    """One more try at the problems of these numbers."""
    request, count = self.request, len(index)
    rows = min(self.rows, self.engine.rows(max(self.fewest, 1 << (count - 1).bit_length())))
    batch = self.engine.encode([self.problems[i] for i in index], rows)
    numbers, budget = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    numbers[:count], budget[:count] = request.key_numbers[index], self.left[index]
    key = jax.random.fold_in(jax.random.key(request.seed), attempt)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    slots = 0
    if request.strategy in TRIES:
      out = self._decode(batch, keys, budget)
    elif request.strategy in IN_LANES:
      out = self._grow(batch, keys, budget)
    else:
      out, slots = self._play(batch, keys, budget, attempt), tree_slots(request.settings.tree)
    self.left[index] -= out["spent"][:count]
    for row, i in enumerate(index):
      self._take(i, {name: out[name][row] for name in ("completion", "length", "right", "values")})
    positions = float(out["positions"].sum()) + rows * self.engine.max_prompt
    self.flops[index] += self.engine.flops(positions, slots) / count

  def _take(self, i: int, out: dict[str, Any]) -> None:
    """What a try has brought problem i: arrays [L, ...], a row for each completion."""
    request, inside = self.request, self.request.inside
    spent = int(request.caps[i] - self.left[i]) * self.engine.tokens_per_position
    for tokens, length, right, values in zip(*out.values(), strict=True):
      text = tokens[:length].tolist()
      verdict = bool(right) if inside else None
      one = finished(self.engine.tokenizer, text, values, spent, verdict)
      self.first[i] = self.first[i] or text
      if one is None:
        continue
      self.finished[i].append(one)
      accepted = request.accept is not None and request.choice.total(one) >= request.accept
      self.settled[i] |= accepted or bool(verdict)

  def results(self) -> list[SearchResult]:
    spent = self.request.caps - self.left
    return [
      self.request.result(i, self.finished[i], self.first[i], spent[i], self.flops[i])
      for i in range(len(self.problems))
    ]

  def _decode(self, batch: dict[str, Any], keys: jax.Array, budget: np.ndarray) -> dict[str, Any]:
    temperature = 0.0 if self.request.strategy == "greedy" else self.request.temperature
    out = self.engine.decode(self.params, batch, keys, temperature, self.request.inside)
    # The cap: an episode longer than what is left was cut there.
    spent = np.minimum(out["length"], budget)
    right = out["right"] & (out["length"] <= budget)
    one = {
      "completion": out["completion"],
      "length": spent,
      "right": right,
      "values": out["values"],
    }
    return {
      **{name: x[:, None] for name, x in one.items()},
      "spent": spent,
      "positions": out["positions"],
    }

  def _grow(self, batch: dict[str, Any], keys: jax.Array, budget: np.ndarray) -> dict[str, Any]:
    request = self.request
    count = np.array([self._lane_count(int(left)) for left in budget], np.int32)
    lines: Any = self.engine.lanes(
      self.params,
      batch,
      keys,
      budget,
      count,
      request.temperature,
      request.strategy,
      request.lanes,
      request.inside,
    )
    return {**lines, "spent": lines.forward_tokens}

  def _lane_count(self, positions: int) -> int:
    return self.request.lanes.count(self.request.strategy, positions, self.engine.max_tokens)

  def _play(
    self, batch: dict[str, Any], keys: jax.Array, budget: np.ndarray, attempt: int
  ) -> dict[str, Any]:
    explore, settings, inside = float(attempt > 0), self.request.settings, self.request.inside
    played: Any = self.engine.play(
      self.params,
      batch,
      keys,
      budget,
      explore,
      explore,
      settings,
      verify_inside=inside,
      stop_when_found=inside,
      reserve=settings.max_tokens,
    )
    found = played.found
    return {
      "completion": np.where(found.found[:, None], found.completion, played.completion)[:, None],
      "length": np.where(found.found, found.length, played.length)[:, None],
      "right": (found.found | played.right)[:, None],
      # What is found in a tree was never played to its end: the verdict is its only score.
      "values": [[None if done else v] for done, v in zip(found.found, played.values, strict=True)],
      "spent": played.forward_tokens,
      "positions": played.positions,
    }
