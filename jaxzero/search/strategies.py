"""Ways of thinking on a budget: `search(engine, params, problems, strategy, budget, seed)`.

A budget is a cap on forward tokens per problem, the prompt not counted. Strategies that may verify
inside (the task decides that from the problem alone) stop at the first verified answer, and give up
a line of thought where the verifier, reading along, knows that it is lost. Without a verifier they
spend the whole budget, and of what they finished they give what the value head likes best.
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
from jaxzero.search.config import VALUE_ORDERS, TreeConfig
from jaxzero.search.engine import Engine
from jaxzero.search.mcts import tree_slots
from jaxzero.search.play import PlayConfig
from jaxzero.search.pool import think
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import parse_completion

ONE_TRY = ("greedy", "sample")
DECODED = (*ONE_TRY, "best_of_n")
STRATEGIES = (*DECODED, "shared_samples", "without_replacement", "best_first", "mcts")


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
  batch_size: int = 128,
  temperature: float = 1.0,
  verify_inside: bool | None = None,
) -> list[SearchResult]:
  """Answers problems by one strategy, all batched and jitted.

  Args:
    strategy: one of STRATEGIES.
    budget: forward tokens per problem, at least 1; `greedy` and `sample` make one try with it.
    seed: every problem's key folds in its index and the try's.
    play: the tree search's settings.
    temperature: of the policy that is sampled or followed; `greedy` is at 0 whatever it is.
    verify_inside: whether the search hears the verifier; default: where the task allows it.

  Raises:
    UserError: an unknown strategy, an empty budget, a seed beyond 31 bits, or verifying inside
      asked of a task whose answers only a key decides.
  """
  if strategy not in STRATEGIES:
    raise UserError(f"strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}.")
  if not 1 <= budget <= 65_536:
    raise UserError(f"budget={budget} forward tokens per problem must lie in 1..65536.")
  if not 0 <= seed < 2**31:
    raise UserError(f"seed={seed} must lie in 0..{2**31 - 1}.")
  if not 0.0 < temperature <= 100.0:
    raise UserError(f"temperature={temperature} must lie above 0 and at most at 100.")
  allowed = engine.task.self_checkable
  if verify_inside and not allowed:
    raise UserError(
      f"task {engine.task.name!r} decides by an answer key, which no search may see; leave "
      "verify_inside off."
    )
  inside = hears_verifier(engine, strategy, verify_inside)
  if not problems:
    return []
  play = play or PlayConfig(max_tokens=engine.max_tokens)
  order = play.tree.order if strategy == "mcts" else strategy
  if order in VALUE_ORDERS and temperature != 1.0:
    raise UserError(
      f"temperature={temperature}: a search by values (order={order}) follows the policy as it is; "
      "leave it at 1."
    )
  if strategy in DECODED or order in VALUE_ORDERS:
    thinker = _Tries(engine, params, strategy, play, problems, budget, temperature, inside)
    return thinker.run(seed, batch_size)
  return _one_tree(
    engine,
    params,
    problems,
    strategy,
    play.tree,
    order,
    budget,
    seed,
    batch_size,
    temperature,
    inside,
  )


def hears_verifier(engine: Engine, strategy: str, verify_inside: bool | None) -> bool:
  """Whether a strategy verifies inside, as `search` is asked to; None: where the task allows it."""
  wanted = engine.task.self_checkable if verify_inside is None else verify_inside
  return wanted and strategy not in ONE_TRY


def _one_tree(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  strategy: str,
  tree: TreeConfig,
  order: str,
  budget: int,
  seed: int,
  batch_size: int,
  temperature: float,
  inside: bool,
) -> list[SearchResult]:
  """Grows one tree a problem with all of the budget."""
  count = len(problems)
  # Few sizes of tree, so that budgets share compiled functions; the limit is the budget's own.
  capacity = max(64, 1 << (budget - 1).bit_length())
  config = tree.along_paths(order, capacity)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), np.arange(count))
  # Sampling is noise from the root down; the other orders take what looks best.
  noise = 1.0 if order == "without_replacement" else 0.0
  with bar(f"{strategy}, budget {budget}", count, "problems") as progress:
    thinking = think(
      engine,
      params,
      problems,
      keys,
      budget,
      config,
      inside,
      noise,
      temperature,
      batch_size,
      progress=progress.advance,
    )
  spent = thinking.insight.forward_tokens
  flops = engine.flops(thinking.positions) / count
  return [
    _result(engine, problem, *thinking.given(i), spent[i], flops)
    for i, problem in enumerate(problems)
  ]


def _result(
  engine: Engine, problem: Problem, tokens: Sequence[int], right: Any, spent: Any, flops: float
) -> SearchResult:
  completion, finished = parse_completion(engine.tokenizer, tokens)
  return SearchResult(
    problem=problem,
    tokens=tuple(tokens),
    answer=completion.answer if finished else None,
    right=bool(right),
    forward_tokens=int(spent),
    flops=float(flops),
  )


class _Tries:
  """Tries again what is neither solved nor out of budget, in batches of one shape."""

  def __init__(
    self,
    engine: Engine,
    params: Params,
    strategy: str,
    play: PlayConfig,
    problems: Sequence[Problem],
    budget: int,
    temperature: float,
    inside: bool,
  ):
    self.engine, self.params = engine, engine.gather(params)
    self.strategy, self.play = strategy, play
    self.problems, self.budget = problems, budget
    self.temperature, self.inside = temperature, inside
    self.once = strategy in ONE_TRY
    count = len(problems)
    self.left = np.full(count, budget, np.int32)
    self.flops = np.zeros(count)
    self.right = np.zeros(count, bool)
    self.value = np.full(count, -1.0)
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
    return [
      _result(
        self.engine,
        problem,
        self.tokens[i],
        self.right[i],
        self.budget - self.left[i],
        self.flops[i],
      )
      for i, problem in enumerate(self.problems)
    ]

  def _goes_on(self, index: np.ndarray) -> np.ndarray:
    solved = self.right[index] & self.inside
    return (not self.once) & ~solved & (self.left[index] > 0)

  def _try_batch(self, index: np.ndarray, key: jax.Array, attempt: int, rows: int) -> None:
    """One more try at the problems of these numbers, at most `rows`."""
    batch = self.engine.encode([self.problems[i] for i in index], rows)
    numbers, budget = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
    numbers[: len(index)], budget[: len(index)] = index, self.left[index]
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)
    out = self._try(batch, keys, budget, attempt)
    for row, i in enumerate(index):
      # Without a verdict the value head picks; what was cut off never replaces what ended.
      if self.inside or out["value"][row] > self.value[i]:
        self.tokens[i] = tuple(out["completion"][row, : out["length"][row]].tolist())
        self.right[i], self.value[i] = out["right"][row], out["value"][row]
    self.left[index] -= out["forward_tokens"][: len(index)]
    positions = float(out["positions"].sum()) + rows * self.engine.max_prompt
    slots = 0 if self.strategy in DECODED else tree_slots(self.play.tree)
    self.flops[index] += self.engine.flops(positions, slots) / len(index)

  def _try(
    self, batch: dict[str, np.ndarray], keys: jax.Array, budget: np.ndarray, attempt: int
  ) -> dict[str, np.ndarray]:
    if self.strategy in DECODED:
      temperature = 0.0 if self.strategy == "greedy" else self.temperature
      out = self.engine.decode(self.params, batch, keys, temperature, self.inside)
      # The cap: an episode longer than what is left was cut there.
      cut = out["length"] > budget
      return {
        "completion": out["completion"],
        "length": np.minimum(out["length"], budget),
        "right": out["right"] & ~cut,
        "value": np.where(cut | ~out["finished"], -0.5, out["value"]),
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
      "value": np.where(played.finished, played.value, -0.5),
      "forward_tokens": played.forward_tokens,
      "positions": played.positions,
    }
