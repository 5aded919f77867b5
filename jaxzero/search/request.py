"""What is asked of a strategy, and what a problem gets: the words that all strategies share."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxzero.errors import UserError
from jaxzero.models.transformer import Params
from jaxzero.search.budget import Budget
from jaxzero.search.choose import Choice, Finished, choose
from jaxzero.search.config import PATH_ORDERS, VALUE_ORDERS, Lanes
from jaxzero.search.engine import Engine
from jaxzero.search.plan import Plan
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import grade, parse_completion

ONE_TRY = ("greedy", "sample")
DEAF = (*ONE_TRY, "majority")
"""Strategies that never hear the verifier."""
TRIES = (*DEAF, "best_of_n")
"""Strategies that decode one whole completion after the other."""


@dataclasses.dataclass(frozen=True)
class SearchResult:
  """What one problem got."""

  problem: Problem
  tokens: tuple[int, ...] = dataclasses.field(repr=False)  # the completion, hidden thinking too
  answer: str | None  # its text behind the thinking; None: none within the budget
  right: bool  # the task's verdict on it, given when the search was over
  forward_tokens: int  # positions asked for after the prompt, of each model that reads along
  flops: float  # of everything put through the models for it: prompt, idle and padding rows too
  finished: tuple[Finished, ...] = dataclasses.field(repr=False, default=())
  """All completions that the answer was chosen from, in the order they were finished."""


@dataclasses.dataclass(frozen=True)
class Request:
  """One call of `search`, checked; see there for the fields."""

  engine: Engine
  params: Params
  problems: Sequence[Problem]
  strategy: str
  budget: int
  seed: int = 0
  play: PlayConfig | None = None
  batch_size: int = 128
  temperature: float = 1.0
  verify_inside: bool | None = None
  choice: Choice = Choice()
  samples: int | None = None
  lanes: Lanes = Lanes()
  accept: float | None = None
  plan: Plan | None = None
  numbers: np.ndarray | None = None  # [n] int32: what problems' keys fold in; default: their places
  limits: np.ndarray | None = None  # [n] int32 positions, within the budget; default: all of it

  def __post_init__(self):
    Budget(self.budget).positions(self.engine.tokens_per_position)
    if not 0 <= self.seed < 2**31:
      raise UserError(f"seed={self.seed} must lie in 0..{2**31 - 1}.")
    if not 0.0 < self.temperature <= 100.0:
      raise UserError(f"temperature={self.temperature} must lie above 0 and at most at 100.")
    if self.batch_size < 1:
      raise UserError(f"batch_size={self.batch_size} must be at least 1.")
    if self.order in VALUE_ORDERS and self.temperature != 1.0:
      raise UserError(
        f"temperature={self.temperature}: a search by values (order={self.order}) follows the "
        "policy as it is; leave it at 1."
      )
    if self.samples is not None and self.samples < 1:
      raise UserError(f"samples={self.samples} must be at least 1.")
    if self.accept is not None:
      self._check_accept(self.accept)
    self.lanes.check()
    self._check_rights()

  def _check_accept(self, accept: float) -> None:
    if not 0.0 <= accept <= 1.0:
      raise UserError(f"accept={accept} is a score to stop at; it must lie in 0..1.")
    if self.grows_one_tree:
      raise UserError(
        f"accept={accept} stops strategies that try again, and {self.strategy} grows one tree to "
        "its end; leave it out."
      )

  def _check_rights(self) -> None:
    score, inside = self.choice.score, self.verify_inside
    if (inside or score == "verifier") and not self.engine.task.self_checkable:
      raise UserError(
        f"task {self.engine.task.name!r} decides by an answer key, which no search may see; leave "
        "verify_inside off and score by value."
      )
    if score is not None and inside is not None and inside != (score == "verifier"):
      raise UserError(f"score={score} and verify_inside={inside} contradict; leave one out.")

  @property
  def inside(self) -> bool:
    """Whether the search hears the verifier."""
    return hears_verifier(self.engine, self.strategy, self.verify_inside, self.choice)

  @property
  def settings(self) -> PlayConfig:
    return self.play or PlayConfig(max_tokens=self.engine.max_tokens)

  @property
  def order(self) -> str:
    """The order in which a tree grows: the strategy's own, or that of `mcts` as configured."""
    return self.settings.tree.order if self.strategy == "mcts" else self.strategy

  @property
  def grows_one_tree(self) -> bool:
    """Whether a problem gets one tree that grows along its paths."""
    return self.order in PATH_ORDERS

  @property
  def key_numbers(self) -> np.ndarray:
    """[n] int32: what each problem's key folds in."""
    return np.arange(len(self.problems)) if self.numbers is None else self.numbers

  @property
  def caps(self) -> np.ndarray:
    """[n] int32: each problem's cap in token positions."""
    if self.limits is None:
      return np.full(len(self.problems), self.positions, np.int32)
    return self.limits

  @property
  def positions(self) -> int:
    """The budget in token positions."""
    return Budget(self.budget).positions(self.engine.tokens_per_position)

  @property
  def asked(self) -> list[Problem]:
    """The problems as a search sees them: without their answer keys."""
    return [dataclasses.replace(problem, key=None) for problem in self.problems]

  def result(
    self,
    i: int,
    finished: Sequence[Finished],
    unfinished: Sequence[int],
    positions: Any,
    flops: float,
  ) -> SearchResult:
    """Chooses problem i's answer and grades it.

    Args:
      unfinished: tokens to show where nothing was finished.
      positions: token positions asked for after the prompt.
    """
    problem, tokenizer = self.problems[i], self.engine.tokenizer
    chosen = choose(finished, self.choice)
    tokens = tuple(unfinished) if chosen is None else chosen.tokens
    completion, ended = parse_completion(tokenizer, tokens)
    return SearchResult(
      problem=problem,
      tokens=tokens,
      answer=completion.answer if ended else None,
      right=grade(self.engine.task, tokenizer, problem, tokens).right,
      forward_tokens=int(positions) * self.engine.tokens_per_position,
      flops=float(flops),
      finished=tuple(finished),
    )


def hears_verifier(
  engine: Engine, strategy: str, verify_inside: bool | None, choice: Choice = Choice()
) -> bool:
  """Whether a strategy verifies inside, as `search` is asked to; None: where the task allows it."""
  wanted = engine.task.self_checkable if verify_inside is None else verify_inside
  return wanted and choice.score != "value" and strategy not in DEAF
