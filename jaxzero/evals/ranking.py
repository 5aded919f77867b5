"""How good are scores in [0, 1] of what is right with some probability: ranking and calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BINS = 10
"""Of the calibration error, equally wide."""


def auroc(scores: np.ndarray, targets: np.ndarray) -> float | None:
  """The chance that a right one scores above a wrong one, ties counting half.

  Args:
    scores: [n].
    targets: [n] in [0, 1]: right or not, or with which probability; then it is the chance for a
      right and a wrong one that are drawn with these probabilities.

  Returns:
    None where nothing is right, or nothing wrong.
  """
  targets = np.asarray(targets, np.float64)
  values, group = np.unique(np.asarray(scores, np.float64), return_inverse=True)
  right = np.bincount(group, targets, len(values))
  wrong = np.bincount(group, 1 - targets, len(values))
  pairs = right.sum() * wrong.sum()
  if pairs <= 0:
    return None
  below = np.cumsum(wrong) - wrong
  return float((right * (below + wrong / 2)).sum() / pairs)


def calibration_error(scores: np.ndarray, targets: np.ndarray) -> float:
  """ECE (Guo et al. 2017, eq. 5): how far a bin's mean score lies from its share of right ones, on
  average over all scores."""
  scores, targets = np.asarray(scores, np.float64), np.asarray(targets, np.float64)
  bins = np.minimum((scores * BINS).astype(int), BINS - 1)
  gaps = np.bincount(bins, scores - targets, BINS)
  return float(np.abs(gaps).sum() / len(scores))


def brier(scores: np.ndarray, targets: np.ndarray) -> float:
  """Mean squared difference."""
  return float(np.mean((np.asarray(scores, np.float64) - np.asarray(targets, np.float64)) ** 2))


def first_below(scores: Sequence[float], threshold: float) -> int:
  """The index of the first score under the threshold; -1 if there is none."""
  return next((index for index, score in enumerate(scores) if score < threshold), -1)


def first_error_f1(
  scores: Sequence[Sequence[float]], errors: Sequence[int], threshold: float
) -> dict[str, float]:
  """How well thresholded step scores tell where a solution first goes wrong (ProcessBench: Zheng et
  al. 2024, section 3.3).

  Args:
    scores: of each solution's steps.
    errors: each solution's first wrong step, -1 for a right one.

  Returns:
    {"f1": the harmonic mean of the two, "erroneous": the share of wrong solutions whose first wrong
    step is told, "correct": the share of right ones where none is}. A share of none is 0.
  """
  hits: dict[bool, list[bool]] = {True: [], False: []}
  for steps, error in zip(scores, errors, strict=True):
    hits[error >= 0].append(first_below(steps, threshold) == error)
  erroneous, correct = (float(np.mean(hits[kind])) if hits[kind] else 0.0 for kind in (True, False))
  total = erroneous + correct
  f1 = 2 * erroneous * correct / total if total else 0.0
  return {"f1": f1, "erroneous": erroneous, "correct": correct}


def best_threshold(scores: Sequence[Sequence[float]], errors: Sequence[int]) -> float:
  """The threshold of the highest F1 on these solutions, from a grid of 99 and of the scores'
  percentiles; the lowest of equals."""
  everything = np.concatenate([np.asarray(steps, np.float64) for steps in scores])
  grid = {*np.linspace(0.01, 0.99, 99), *np.quantile(everything, np.linspace(0, 1, 101))}
  return float(max(sorted(grid), key=lambda t: first_error_f1(scores, errors, t)["f1"]))
