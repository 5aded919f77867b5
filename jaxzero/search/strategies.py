"""Ways of thinking on a budget: `search(engine, params, problems, strategy, budget, seed)`.

A budget is a cap on forward tokens per problem, the prompt not counted. Strategies that may verify
inside (the task decides that from the problem alone) stop at the first verified answer and spend
what is left of the budget on further tries; what they give then is their last one. A budget too
small for a tree search and an answer is spent by `mcts` on decoding alone, first greedily.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.models.transformer import Params
from jaxzero.progress import bar
from jaxzero.search.engine import Engine
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import parse_completion

STRATEGIES = ("greedy", "sample", "best_of_n", "mcts")


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """What one problem got."""

  problem: Problem
  tokens: tuple[int, ...] = dataclasses.field(repr=False)  # the completion, hidden thinking too
  answer: str | None  # its text behind the thinking; None: none within the budget
  right: bool  # the verdict on it
  forward_tokens: int  # positions asked for, after the prompt
  flops: float  # of everything put through the model for it: prompt, idle and padding rows too


def search(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  strategy: str,
  budget: int,
  seed: int = 0,
  play: PlayConfig | None = None,
  batch_size: int = 256,
) -> list[SearchResult]:
  """Answers problems by one strategy, all batched and jitted.

  Args:
    strategy: one of STRATEGIES.
    budget: forward tokens per problem, at least 1; `greedy` and `sample` make one try with it.
    seed: every problem's key folds in its index and the try's.
    play: the tree search's settings, for `mcts`.

  Raises:
    UserError: an unknown strategy, an empty budget, a seed beyond 31 bits, or verifying inside
      asked of a task whose answers only a key decides.
  """
  if strategy not in STRATEGIES:
    raise UserError(f"strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}.")
  if not 1 <= budget <= 1_000_000:
    raise UserError(f"budget={budget} forward tokens per problem must lie in 1..1000000.")
  if not 0 <= seed < 2**31:
    raise UserError(f"seed={seed} must lie in 0..{2**31 - 1}.")
  inside = engine.task.self_checkable
  if strategy == "best_of_n" and not inside:
    raise UserError(
      f"best_of_n picks by the verifier, but task {engine.task.name!r} decides by an answer key; "
      "use mcts or sample."
    )
  play = play or PlayConfig(max_tokens=engine.max_tokens)
  return _Thinker(engine, params, strategy, play, problems, budget).run(seed, batch_size)


class _Thinker:
  """Tries again what is neither solved nor out of budget, in batches of one shape."""

  def __init__(
    self,
    engine: Engine,
    params: Params,
    strategy: str,
    play: PlayConfig,
    problems: Sequence[Problem],
    budget: int,
  ):
    self.engine, self.params, self.strategy, self.play = engine, params, strategy, play
    self.tree_slots = play.mcts.num_simulations if strategy == "mcts" else 0
    self.inside = engine.task.self_checkable and strategy in ("best_of_n", "mcts")
    self.problems, self.budget = problems, budget
    count = len(problems)
    self.left = np.full(count, budget, np.int32)
    self.flops = np.zeros(count)
    self.right = np.zeros(count, bool)
    self.tokens: list[tuple[int, ...]] = [()] * count

  def run(self, seed: int, batch_size: int) -> list[SearchResult]:
    count, seed_key = len(self.problems), jax.random.key(seed)
    attempt, open_problems = 0, np.arange(count)
    with bar(f"{self.strategy}, budget {self.budget}", count, "problems") as progress:
      while len(open_problems):
        key = jax.random.fold_in(seed_key, attempt)
        for begin in range(0, len(open_problems), batch_size):
          index = open_problems[begin : begin + batch_size]
          self._try_batch(index, key, attempt, self.engine.rows(min(batch_size, count)))
          progress.advance(len(index) - int(self._goes_on(index).sum()))
        open_problems = open_problems[self._goes_on(open_problems)]
        attempt += 1
    return [self._result(i) for i in range(count)]

  def _result(self, i: int) -> SearchResult:
    completion, finished = parse_completion(self.engine.tokenizer, self.tokens[i])
    return SearchResult(
      problem=self.problems[i],
      tokens=self.tokens[i],
      answer=completion.answer if finished else None,
      right=bool(self.right[i]),
      forward_tokens=int(self.budget - self.left[i]),
      flops=float(self.flops[i]),
    )

  def _goes_on(self, index: np.ndarray) -> np.ndarray:
    return self.inside & ~self.right[index] & (self.left[index] > 0)

  def _try_batch(self, index: np.ndarray, key: jax.Array, attempt: int, rows: int) -> None:
    """One more try at the problems of these numbers, at most `rows`."""
    batch = self.engine.encode([self.problems[i] for i in index], rows)
    numbers, budget = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    numbers[: len(index)], budget[: len(index)] = index, self.left[index]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    out = self._try(batch, keys, budget, attempt)
    for row, i in enumerate(index):
      self.tokens[i] = tuple(out["completion"][row, : out["length"][row]].tolist())
    self.right[index] = out["right"][: len(index)]
    self.left[index] -= out["forward_tokens"][: len(index)]
    positions = float(out["positions"].sum()) + rows * self.engine.max_prompt
    self.flops[index] += self.engine.flops(positions, self.tree_slots) / len(index)

  def _try(
    self, batch: dict[str, np.ndarray], keys: jax.Array, budget: np.ndarray, attempt: int
  ) -> dict[str, np.ndarray]:
    if self.strategy != "mcts":
      temperature = 0.0 if self.strategy == "greedy" else 1.0
      out = self.engine.decode(self.params, batch, keys, temperature)
      # The cap: an episode longer than what is left was cut there.
      cut = out["length"] > budget
      return {
        "completion": out["completion"],
        "length": np.minimum(out["length"], budget),
        "right": out["right"] & ~cut,
        "forward_tokens": np.minimum(out["length"], budget),
        "positions": out["positions"],
      }
    explore = 0.0 if attempt == 0 else 1.0
    played: Any = self.engine.play(
      self.params,
      batch,
      keys,
      budget,
      explore,
      explore,
      self.play,
      verify_inside=self.inside,
      stop_when_found=self.inside,
      reserve=self.play.max_tokens,
    )
    found = played.found.found
    return {
      "completion": np.where(found[:, None], played.found.completion, played.completion),
      "length": np.where(found, played.found.length, played.length),
      "right": found | played.right,
      "forward_tokens": played.forward_tokens,
      "positions": played.positions,
    }
