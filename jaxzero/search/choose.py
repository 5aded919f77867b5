"""Which of several finished completions is the answer: scores of steps, and votes by answers.

The steps' scores are P(right) at their ends, by the value head or by a process reward model where
the engine has one. Aggregates and weighted votes as in Lightman et al. 2023, Snell et al. 2024 and
Beeching et al. 2024; the majority vote is self-consistency (Wang et al. 2022).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks.transcript import answer_span
from jaxzero.tokenizers import Tokenizer

AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {
  "last": lambda scores: scores[-1],
  "min": min,
  "product": math.prod,
  "mean": lambda scores: math.fsum(scores) / len(scores),
}
PRIOR = 0.5
"""A tree holds each completion once, however likely, and the more of the unlikely ones the larger
it grows, where scores are least to be trusted: a completion of log-probability log p counts by
exp(PRIOR log p), as often as samples at temperature 1 / PRIOR would have brought it."""
SCORES = ("verifier", "value")
VOTES = ("best", "weighted", "majority")


@dataclasses.dataclass(frozen=True)
class Choice:
  """How the answer is chosen among finished completions."""

  score: str | None = None
  """`verifier`: the search hears it, and what it finds right is the answer (UserError where only a
  key decides); `value`: nobody but the model judges; default: the verifier where the task lets a
  search hear it."""
  aggregate: str = "last"
  """A completion's score from its steps': `last`, `min`, `product`, `mean`."""
  vote: str = "best"
  """`best`: the completion of the best score; `weighted`: the answer with the largest sum of
  scores; `majority`: the answer given most often. Answers are equal if their texts are, spaces
  aside: two expressions of one value are two answers."""

  def __post_init__(self):
    for name, choices in (("score", SCORES), ("aggregate", tuple(AGGREGATES)), ("vote", VOTES)):
      given = getattr(self, name)
      if given not in choices and not (name == "score" and given is None):
        raise UserError(f"{name}={given!r} is unknown; use {', '.join(choices)}.")

  def total(self, finished: Finished) -> float:
    """A completion's score."""
    return AGGREGATES[self.aggregate](finished.scores)


@dataclasses.dataclass(frozen=True)
class Finished:
  """A completion that left its thinking and reached its end token."""

  tokens: tuple[int, ...] = dataclasses.field(repr=False)
  answer: str  # the text behind the thinking
  scores: tuple[float, ...]  # P(right) at the end of each step, of the thinking, of the answer
  spent: int  # forward tokens that the problem had cost when it was finished
  right: bool | None = None  # the verdict that the search heard; None: it hears none
  log_p: float | None = None  # by the policy, of a tree's completion; None: it was drawn

  @property
  def prior(self) -> float:
    """What a tree's completion counts beside its score; 1 where it was drawn."""
    return 1.0 if self.log_p is None else math.exp(PRIOR * self.log_p)


def end_tokens(tokenizer: Tokenizer) -> tuple[int, int, int]:
  """The tokens at which a step ends, and so has a score."""
  return tokenizer.step_id, tokenizer.end_think_id, tokenizer.end_id


def finished(
  tokenizer: Tokenizer,
  tokens: Sequence[int],
  values: Sequence[float] | np.ndarray | None,
  spent: int,
  right: bool | None = None,
  log_p: float | None = None,
) -> Finished | None:
  """A completion with its scores; None where it has not ended, or never left its thinking.

  Args:
    values: P(right) after each token, None where unknown; a heard verdict takes the place of the
      last one.
    log_p: see `Finished`.
  """
  span = answer_span(tokenizer, tokens)
  if span is None:
    return None
  ends = end_tokens(tokenizer)
  scores = [] if values is None else [float(values[i]) for i, t in enumerate(tokens) if t in ends]
  if right is not None:
    scores = [*scores[:-1], float(right)]
  answer = tokenizer.decode(tokens[span[0] : span[1]], controls=True)
  return Finished(tuple(tokens), answer, tuple(scores), spent, right, log_p)


def choose(candidates: Sequence[Finished], choice: Choice) -> Finished | None:
  """The answer; None where nothing was finished. Ties go to the better score, then to the first.

  A completion that the verifier was heard to find right wins over all votes. Else a completion's
  score, and its voice in a majority, is multiplied by its `prior`; drawn ones (of an earlier
  approach) have no say beside a tree's.
  """
  right = [one for one in candidates if one.right]
  if right or not candidates:
    return right[0] if right else None
  candidates = [one for one in candidates if one.log_p is not None] or candidates
  groups: dict[str, list[Finished]] = {}
  for number, one in enumerate(candidates):
    answer = str(number) if choice.vote == "best" else "".join(one.answer.split())
    groups.setdefault(answer, []).append(one)

  def weighed(one: Finished) -> float:
    return one.prior * choice.total(one)

  def weight(group: list[Finished]) -> tuple[float, float]:
    weights = [weighed(one) for one in group]
    if choice.vote == "majority":
      return math.fsum(one.prior for one in group), max(weights)
    return max(weights) if choice.vote == "best" else math.fsum(weights), max(weights)

  winners = max(groups.values(), key=weight)
  return max(winners, key=weighed)
