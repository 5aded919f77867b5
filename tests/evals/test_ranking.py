"""Grades of scores against loops over all pairs, bins and solutions."""

import numpy as np
import pytest

from jaxzero.evals.ranking import (
  auroc,
  best_threshold,
  brier,
  calibration_error,
  first_error_f1,
)


def some(seed, n=40, soft=True):
  random = np.random.default_rng(seed)
  scores = random.integers(0, 11, n) / 10.0  # with ties, and both ends
  targets = random.random(n) if soft else random.integers(0, 2, n).astype(float)
  return scores, targets


@pytest.mark.parametrize("soft", [False, True])
def test_auroc_counts_pairs(soft):
  for seed in range(5):
    scores, targets = some(seed, soft=soft)
    won = total = 0.0
    for s, p in zip(scores, targets, strict=True):
      for other, q in zip(scores, targets, strict=True):
        won += p * (1 - q) * ((s > other) + 0.5 * (s == other))
        total += p * (1 - q)
    assert auroc(scores, targets) == pytest.approx(won / total)
    assert auroc(1 - scores, targets) == pytest.approx(1 - won / total)


def test_auroc_of_one_class_is_undefined_and_of_a_perfect_order_one():
  assert auroc(np.array([0.2, 0.3]), np.array([True, True])) is None
  assert auroc(np.zeros(0), np.zeros(0)) is None
  assert auroc(np.array([0.2, 0.3, 0.9]), np.array([False, False, True])) == 1.0


def test_calibration_error_averages_over_ten_bins():
  for seed in range(5):
    scores, targets = some(seed)
    total = 0.0
    for low in range(10):
      inside = [i for i, s in enumerate(scores) if low == min(int(s * 10), 9)]
      if inside:
        gap = np.mean([scores[i] for i in inside]) - np.mean([targets[i] for i in inside])
        total += abs(gap) * len(inside) / len(scores)
    assert calibration_error(scores, targets) == pytest.approx(total)
    assert brier(scores, targets) == pytest.approx(
      sum((s - t) ** 2 for s, t in zip(scores, targets, strict=True)) / len(scores)
    )


def test_first_error_f1_is_the_harmonic_mean_of_both_kinds():
  scores = [[0.9, 0.8], [0.9, 0.1], [0.2, 0.1], [0.9, 0.4], [0.3]]
  errors = [-1, 1, 1, -1, 0]
  told = first_error_f1(scores, errors, 0.5)
  assert told == {
    "f1": pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2)),
    "erroneous": pytest.approx(2 / 3),  # the third is told one step too early
    "correct": 0.5,  # the fourth is accused
  }
  assert first_error_f1(scores, errors, 0.0)["f1"] == 0.0, "nothing is ever accused"


def test_the_best_threshold_is_the_best_of_all():
  random = np.random.default_rng(0)
  errors = random.integers(-1, 3, 60).tolist()
  scores = [
    np.where(np.arange(3) >= (error if error >= 0 else 9), 0.3, 0.6) + random.normal(0, 0.15, 3)
    for error in errors
  ]
  found = first_error_f1(scores, errors, best_threshold(scores, errors))["f1"]
  every = [first_error_f1(scores, errors, t)["f1"] for t in np.concatenate(scores)]
  assert found > 0.4 and found >= max(every) - 0.05
