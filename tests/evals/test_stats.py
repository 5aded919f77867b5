import itertools

import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.evals.stats import log_budget_trend, mean_interval, paired_bootstrap, wilson


@pytest.mark.parametrize(
  ("solved", "problems", "low", "high"),
  # Newcombe 1998, table I, method 3.
  [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1)],
)
def test_wilson_matches_published_values(solved, problems, low, high):
  np.testing.assert_allclose(wilson(solved, problems), (low, high), atol=5e-5)


def test_wilson_bounds_are_where_the_score_test_turns_significant():
  z = 1.959964
  for solved, problems in [(3, 10), (250, 500), (499, 500)]:
    for bound in wilson(solved, problems):
      score = (solved / problems - bound) / np.sqrt(bound * (1 - bound) / problems)
      assert abs(score) == pytest.approx(z, rel=1e-6)


@pytest.mark.parametrize(("solved", "problems"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(solved, problems):
  with pytest.raises(UserError, match=f"solved={solved} of problems={problems}"):
    wilson(solved, problems)


def test_paired_bootstrap_agrees_with_all_resamples():
  a, b = np.array([1, 1, 1, 0, 1], bool), np.array([0, 1, 0, 1, 0], bool)
  scores = a.astype(int) - b
  every = [scores[list(rows)].mean() for rows in itertools.product(range(5), repeat=5)]
  result = paired_bootstrap(a, b, seed=0, resamples=50_000)
  assert result["difference"] == pytest.approx(0.4)
  np.testing.assert_allclose(result["ci95"], np.quantile(every, [0.025, 0.975]), atol=1e-9)
  exact_p = 2 * np.mean(np.array(every) <= 1e-12)
  assert result["p"] == pytest.approx(exact_p, rel=0.05)


def test_paired_bootstrap_sees_pairs_and_is_antisymmetric():
  random = np.random.default_rng(0)
  b = random.random(500) < 0.5
  a = b | (random.random(500) < 0.04)
  result, swapped = paired_bootstrap(a, b, seed=3), paired_bootstrap(b, a, seed=3)
  assert result["p"] < 0.01 and result["ci95"][0] > 0
  assert swapped["difference"] == -result["difference"]
  assert paired_bootstrap(a, b, seed=3) == result
  assert paired_bootstrap(a, a, seed=0) == {"difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0}


def test_paired_bootstrap_is_calibrated_under_no_difference():
  random = np.random.default_rng(1)
  p = [
    paired_bootstrap(random.random(200) < 0.5, random.random(200) < 0.5, seed, 1000)["p"]
    for seed in range(300)
  ]
  assert 0.02 < np.mean(np.array(p) < 0.05) < 0.10


def test_trend_slope_is_the_least_squares_line():
  random = np.random.default_rng(0)
  budgets = [1, 2, 4, 16]
  solved = random.random((4, 300)) < np.array([0.3, 0.4, 0.5, 0.7])[:, None]
  result = log_budget_trend(budgets, solved, seed=0)
  expected = np.polyfit(np.log2(budgets), solved.mean(axis=1), 1)[0]
  assert result["slope_per_doubling"] == pytest.approx(expected)
  low, high = result["ci95"]
  assert 0.05 < low < expected < high < 0.15
  assert result["worst_fall"] == 0.0 and result["worst_fall_p"] == 1.0


def test_trend_interval_agrees_with_resampling_problems():
  random = np.random.default_rng(2)
  solved = random.random((3, 60)) < 0.5
  x = np.arange(3) - 1
  slopes = [
    np.polyfit(x, solved[:, random.integers(60, size=60)].mean(axis=1), 1)[0] for _ in range(4000)
  ]
  result = log_budget_trend([1, 2, 4], solved, seed=0)
  np.testing.assert_allclose(result["ci95"], np.quantile(slopes, [0.025, 0.975]), atol=0.012)


def test_trend_reports_the_most_significant_fall():
  solved = np.zeros((4, 400), bool)
  solved[0, :200] = True
  solved[1, :196] = True  # a clean fall of 1 point
  solved[2] = solved[1]
  solved[3, :140] = True  # a clean fall of 14 points
  result = log_budget_trend([1, 2, 4, 8], solved, seed=0)
  assert result["worst_fall"] == pytest.approx(0.14)
  assert result["worst_fall_p"] < 0.001
  pair = paired_bootstrap(solved[2], solved[3], seed=0)
  assert pair["difference"] == pytest.approx(result["worst_fall"])


@pytest.mark.parametrize("budgets", [[1], [2, 1], [0, 1], [1, 1]])
def test_trend_refuses_budgets_that_do_not_rise(budgets):
  with pytest.raises(UserError, match="rising"):
    log_budget_trend(budgets, np.zeros((len(budgets), 3), bool), seed=0)


def test_the_same_seed_twice_leaves_the_interval_of_a_mean():
  right = np.random.default_rng(0).random(200) < 0.3
  low, high = mean_interval(right)
  assert mean_interval(np.mean([right, right], axis=0)) == [low, high]
  assert wilson(int(right.sum()), 200) == pytest.approx((low, high), abs=0.01)
