"""The plan of strategy `auto`: how each kind of problem is thought about, so that few forward
tokens bring the accuracy wanted (compute-optimal scaling: Snell et al. 2024, section 3.1).

Problems are told apart by what the model foresees of them, never by what they turn out to be. The
plan is the exact optimum over the measured candidates: for each bin one candidate, the least tokens
in all with at least so many problems solved, by dynamic programming over the number solved.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxzero.errors import UserError


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One way to think, measured on all problems the plan is made from."""

  name: str
  right: np.ndarray  # [n] bool
  tokens: np.ndarray  # [n] forward tokens that each problem took


@dataclasses.dataclass(frozen=True)
class Fit:
  """A candidate for each bin, and what they come to on the problems they were chosen by."""

  chosen: tuple[int, ...]  # [bins] index of the candidate
  solved: int
  tokens: float  # in all


def edges_of(foreseen: np.ndarray, bins: int) -> tuple[float, ...]:
  """[bins - 1] falling thresholds that part the foreseen P(right) into equally filled bins."""
  if len(foreseen) < bins:
    raise UserError(
      f"{len(foreseen)} validation problems make no {bins} bins; give at least {bins}."
    )
  shares = 1.0 - np.arange(1, bins) / bins
  return tuple(float(edge) for edge in np.quantile(np.asarray(foreseen, float), shares))


def bin_of(foreseen: np.ndarray, edges: Sequence[float]) -> np.ndarray:
  """[n] int: 0 at or above the first (highest) edge, and so on; the last bin foresees least."""
  return (np.asarray(foreseen)[:, None] < np.asarray(edges)[None, :]).sum(axis=1)


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
