"""Whole completions, decoded or played token by token, tried again until the budget is spent."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxzero.progress import bar
from jaxzero.search.choose import Finished, finished
from jaxzero.search.mcts import tree_slots
from jaxzero.search.request import ONE_TRY, TRIES, Request, SearchResult


def run(request: Request) -> list[SearchResult]:
  """Tries again what is neither solved nor out of budget, in batches of one shape."""
  if request.strategy == "majority":
    choice = dataclasses.replace(request.choice, vote="majority")
    request = dataclasses.replace(request, choice=choice)
  tries, count, size = _Tries(request), len(request.problems), request.batch_size
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
    self.rows = self.engine.rows(min(request.batch_size, count))
    self.left = np.full(count, request.positions, np.int32)
    self.flops = np.zeros(count)
    self.solved = np.zeros(count, bool)
    self.finished: list[list[Finished]] = [[] for _ in range(count)]
    self.first: list[list[int]] = [[] for _ in range(count)]
    self.most = 1 if request.strategy in ONE_TRY else request.samples

  def goes_on(self, index: np.ndarray, attempt: int) -> np.ndarray:
    """[n] bool: which of the problems of these numbers get this attempt, too."""
    allowed = self.most is None or attempt < self.most
    return allowed & ~self.solved[index] & (self.left[index] > 0)

  def batch(self, index: np.ndarray, attempt: int) -> None:
    """One more try at the problems of these numbers."""
    rows, count, inside = self.rows, len(index), self.request.inside
    batch = self.engine.encode([self.problems[i] for i in index], rows)
    numbers, budget = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    numbers[:count], budget[:count] = index, self.left[index]
    key = jax.random.fold_in(jax.random.key(self.request.seed), attempt)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    decodes = self.request.strategy in TRIES
    out = self._decode(batch, keys, budget) if decodes else self._play(batch, keys, budget, attempt)
    self.left[index] -= out["spent"][:count]
    for row, i in enumerate(index):
      tokens = out["completion"][row, : out["length"][row]].tolist()
      one = finished(
        self.engine.tokenizer,
        tokens,
        out["values"][row],
        int(self.request.positions - self.left[i]) * self.engine.tokens_per_position,
        bool(out["right"][row]) if inside else None,
      )
      if one is not None:
        self.finished[i].append(one)
      self.solved[i] = inside and out["right"][row]
      self.first[i] = self.first[i] or tokens
    positions = float(out["positions"].sum()) + rows * self.engine.max_prompt
    slots = 0 if decodes else tree_slots(self.request.settings.tree)
    self.flops[index] += self.engine.flops(positions, slots) / count

  def results(self) -> list[SearchResult]:
    spent = self.request.positions - self.left
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
    return {**out, "length": spent, "spent": spent, "right": right}

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
      "completion": np.where(found.found[:, None], found.completion, played.completion),
      "length": np.where(found.found, found.length, played.length),
      "right": found.found | played.right,
      # What is found in a tree was never played to its end: the verdict is its only score.
      "values": [None if done else v for done, v in zip(found.found, played.values, strict=True)],
      "spent": played.forward_tokens,
      "positions": played.positions,
    }
