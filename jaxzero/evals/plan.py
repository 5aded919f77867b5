"""The plan of strategy `auto`: how each kind of problem is thought about, so that few forward
tokens bring the accuracy wanted (compute-optimal scaling: Snell et al. 2024, section 3.1).

Problems are told apart by what the model foresees of them, never by what they turn out to be. The
plan is the exact optimum over the measured candidates: for each bin one candidate, the least tokens
in all with at least so many problems solved, by dynamic programming over the number solved.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxzero.errors import UserError
from jaxzero.evals.settings import TREE_KNOBS
from jaxzero.search.plan import Approach, Plan

BINS = 4
"""Of foreseen difficulty, equally full on the validation problems."""
_ACCEPTS = (0.7, 0.85, 0.95)


@dataclasses.dataclass(frozen=True)
class Candidate:
  """Approaches that follow each other, measured on all problems that the plan is made from."""

  approaches: tuple[Approach, ...]
  right: np.ndarray  # [n] bool
  tokens: np.ndarray  # [n] forward tokens that each problem took


@dataclasses.dataclass(frozen=True)
class Fit:
  """A candidate for each bin, and what they come to on the problems they were chosen by."""

  chosen: tuple[int, ...]  # [bins] index of the candidate
  solved: int
  tokens: float  # in all


def chains(
  heard: bool, settings: Mapping[str, Mapping[str, Any]], budgets: Sequence[int]
) -> list[tuple[Approach, ...]]:
  """What a bin may get: tree search or best-of-N on one of the budgets, the largest without a cap;
  where nobody is heard inside, also sampling, or one greedy try before a tree, until a score is
  accepted.

  Args:
    settings: the tuned ones of `best_of_n` and `mcts`.
    budgets: forward tokens.
  """

  def approach(strategy: str, cap: int | None, accept: float | None = None) -> Approach:
    setting = settings.get(strategy, {})
    tree = {name: setting[name] for name in TREE_KNOBS if name in setting}
    own = {name: setting[name] for name in ("temperature", "aggregate", "vote") if name in setting}
    return Approach(strategy, cap, accept, tree=tree, **own)

  caps = [*sorted(budgets)[:-1], None]
  searches: list[tuple[Approach, ...]] = [
    (approach(name, cap),) for name in ("mcts", "best_of_n") for cap in caps
  ]
  if heard:
    return searches
  sure = [
    (approach("best_of_n", cap, accept),) for cap, accept in itertools.product(caps[-3:], _ACCEPTS)
  ]
  first = [
    (approach("greedy", None, accept), approach("mcts", cap))
    for cap, accept in itertools.product(caps[-3:], _ACCEPTS)
  ]
  return [*searches, *sure, *first]


def make_plan(
  foreseen: np.ndarray, candidates: Sequence[Candidate], wanted: int
) -> tuple[Plan, Fit]:
  """The plan with the least forward tokens that solves `wanted` of these problems.

  Args:
    foreseen: [n] P(right) at the end of each prompt.

  Raises:
    UserError: fewer problems than bins.
  """
  if len(foreseen) < BINS:
    raise UserError(
      f"{len(foreseen)} validation problems make no {BINS} bins; give at least {BINS}."
    )
  edges = np.quantile(np.asarray(foreseen, float), 1.0 - np.arange(1, BINS) / BINS)
  one = candidates[0].approaches
  bins = Plan((one,) * BINS, tuple(edges.tolist())).bin_of(foreseen)
  found = fit(bins, candidates, wanted)
  chosen = (*found.chosen, *[found.chosen[-1]] * (BINS - len(found.chosen)))  # empty last bins
  plan = Plan(tuple(candidates[c].approaches for c in chosen), tuple(edges.tolist()))
  return plan, found


def fit(bins: np.ndarray, candidates: Sequence[Candidate], wanted: int) -> Fit:
  """The least tokens with which at least `wanted` problems are solved.

  Where no choice solves so many, the plan is the one that solves the most, at the least tokens.

  Args:
    bins: [n] int, each problem's bin.
    wanted: number of problems to solve.
  """
  if not candidates:
    raise UserError("a plan needs at least one measured candidate to choose from.")
  count = len(bins)
  # least[s]: tokens with which the bins so far solve exactly s; choices[b][s]: bin b's part in it.
  least = np.full(count + 1, np.inf)
  least[0] = 0.0
  choices: list[np.ndarray] = []
  tables = []
  for number in range(int(bins.max()) + 1):
    members = bins == number
    table = [(int(c.right[members].sum()), float(c.tokens[members].sum())) for c in candidates]
    following, choice = np.full(count + 1, np.inf), np.full(count + 1, -1)
    for index, (solved, tokens) in enumerate(table):
      reached = np.full(count + 1, np.inf)
      reached[solved:] = least[: count + 1 - solved] + tokens
      better = reached < following
      following[better], choice[better] = reached[better], index
    least = following
    choices.append(choice)
    tables.append(table)
  possible = np.flatnonzero(np.isfinite(least))
  enough = possible[possible >= wanted]
  solved = int(enough[np.argmin(least[enough])] if enough.size else possible.max())
  chosen, left = [], solved
  for choice, table in zip(reversed(choices), reversed(tables), strict=True):
    chosen.append(int(choice[left]))
    left -= table[chosen[-1]][0]
  return Fit(tuple(reversed(chosen)), solved, float(least[solved]))
