"""How sure are we: Wilson intervals for one accuracy, bootstraps over problems for comparisons.

Two systems on the same problems are paired, so the resampled unit is the problem with all of its
outcomes. Equal problems are interchangeable: a resample is a multinomial draw over the distinct
outcome patterns, which is the same bootstrap at a fraction of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxzero.errors import UserError


def wilson(solved: int, problems: int, z: float = 1.959964) -> tuple[float, float]:
  """The Wilson score interval of solved / problems (Wilson 1927); z = 1.959964 gives 95 %.

  Raises:
    UserError: unless 0 <= solved <= problems and problems >= 1.
  """
  if problems < 1 or not 0 <= solved <= problems:
    raise UserError(
      f"solved={solved} of problems={problems} is not a share; evaluate at least one problem."
    )
  share, shrink = solved / problems, z * z / problems
  center = (share + shrink / 2) / (1 + shrink)
  half = z * ((share * (1 - share) + shrink / 4) / problems) ** 0.5 / (1 + shrink)
  low = 0.0 if solved == 0 else center - half
  high = 1.0 if solved == problems else center + half
  return low, high


def paired_bootstrap(
  a: np.ndarray, b: np.ndarray, seed: int, resamples: int = 10_000
) -> dict[str, Any]:
  """Accuracy of a minus accuracy of b on the same problems.

  Args:
    a, b: [n] bool, who solved which problem; or the share of seeds that did, in [0, 1].

  Returns:
    {"difference", "ci95": [low, high] (percentile), "p" (two-sided, never 0)}.

  Raises:
    UserError: where a and b are not two equally long, non-empty rows.
  """
  a, b = np.asarray(a, float), np.asarray(b, float)
  if a.ndim != 1 or a.shape != b.shape or not a.size:
    raise UserError(
      f"shapes {a.shape} and {b.shape} cannot be paired; give both the same problems."
    )
  scores = a - b
  means = _bootstrap_means(scores[:, None], seed, resamples)[:, 0]
  return {"difference": float(scores.mean()), "ci95": _ci95(means), "p": _two_sided_p(means)}


def mean_interval(shares: np.ndarray, seed: int = 0, resamples: int = 10_000) -> list[float]:
  """[low, high], 95 % of the means of resampled problems.

  shares: [n], of the seeds that solved each problem; they share their problems, so they are no
  further sample of them, as a Wilson interval over seeds x problems would have it.
  """
  return _ci95(_bootstrap_means(np.asarray(shares, float)[:, None], seed, resamples)[:, 0])


def log_budget_trend(
  budgets: Sequence[float], solved: np.ndarray, seed: int, resamples: int = 10_000
) -> dict[str, Any]:
  """Does more thinking help: least-squares slope of accuracy over log2(budget), and the worst dip.

  Args:
    budgets: [n_budgets] rising, positive.
    solved: [n_budgets, n_problems] bool, the same problems at each budget; or shares of seeds.

  Returns:
    {"slope_per_doubling", "ci95": [low, high], "worst_fall" (accuracy lost, >= 0, from one budget
    to the next where the fall is most significant), "worst_fall_p" (two-sided, not corrected for
    the number of pairs; 1.0 where nothing falls)}.

  Raises:
    UserError: where budgets do not rise or the shapes do not match.
  """
  x, solved = np.asarray(budgets, float), np.asarray(solved, float)
  if x.ndim != 1 or x.size < 2 or x[0] <= 0 or np.any(np.diff(x) <= 0):
    raise UserError(f"budgets={list(budgets)} must be two or more, positive and rising.")
  if solved.ndim != 2 or solved.shape[0] != x.size or not solved.shape[1]:
    raise UserError(
      f"solved has shape {solved.shape}; {x.size} budgets need [{x.size}, number of problems]."
    )
  x = np.log2(x) - np.log2(x).mean()
  slopes = x @ solved / (x @ x)  # [n_problems]
  steps = np.diff(solved, axis=0)  # [n_budgets - 1, n_problems]
  means = _bootstrap_means(np.column_stack([slopes, steps.T]), seed, resamples)
  changes = steps.mean(axis=1)
  falls = [
    (_two_sided_p(means[:, 1 + pair]), change)
    for pair, change in enumerate(changes.tolist())
    if change < 0
  ]
  p, change = min(falls, default=(1.0, 0.0))
  return {
    "slope_per_doubling": float(slopes.mean()),
    "ci95": _ci95(means[:, 0]),
    "worst_fall": abs(change),
    "worst_fall_p": p,
  }


def _bootstrap_means(scores: np.ndarray, seed: int, resamples: int) -> np.ndarray:
  """Means of resampled rows: [n, m] -> [resamples, m]."""
  patterns, counts = np.unique(scores, axis=0, return_counts=True)
  rng = np.random.default_rng(seed)
  draws = rng.multinomial(len(scores), counts / len(scores), size=resamples)
  return draws @ patterns / len(scores)


def _ci95(means: np.ndarray) -> list[float]:
  return np.quantile(means, [0.025, 0.975]).tolist()


def _two_sided_p(means: np.ndarray) -> float:
  tail = min((means <= 1e-12).sum(), (means >= -1e-12).sum())
  return float(min(1.0, 2 * (tail + 1) / (len(means) + 1)))
