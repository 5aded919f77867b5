import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.evals.curves import (
  by_bin,
  compare,
  pack,
  pool,
  rank_bins,
  rights,
  token_ratio,
  tokens_to_reach,
  trend,
)
from jaxzero.evals.stats import paired_bootstrap


def row(budget, right, tokens=None):
  tokens = [budget] * len(right) if tokens is None else tokens
  return {"budget": budget, **pack(right, tokens)}


@pytest.fixture(scope="module")
def outcomes():
  """A curve of 300 problems at five budgets."""
  random = np.random.default_rng(0)
  ease = random.random(300)
  budgets = [20, 40, 80, 160, 320]
  return [
    row(budget, random.random(300) < ease * share, random.integers(1, budget + 1, 300))
    for budget, share in zip(budgets, (0.4, 0.6, 0.75, 0.85, 0.95), strict=True)
  ]


def test_outcomes_survive_packing():
  right = np.random.default_rng(1).random(50) < 0.5
  assert (rights(pack(right, range(50))) == right).all()


def test_steps_of_a_trend_are_paired_bootstraps(outcomes):
  found = trend(outcomes, seed=3)
  assert found["slope_per_doubling"] > 0 and len(found["steps"]) == 4
  for step, low, high in zip(found["steps"], outcomes, outcomes[1:], strict=False):
    expected = paired_bootstrap(rights(high), rights(low), seed=3)
    assert step == {"from": low["budget"], "to": high["budget"], **expected}


def test_rows_are_compared_at_equal_budgets_only(outcomes):
  found = compare(outcomes[1:], outcomes[:3])
  assert [one["budget"] for one in found] == [40, 80]
  assert all(one["difference"] == 0 for one in found)


def test_bins_are_equally_full_and_ordered():
  score = np.random.default_rng(2).integers(0, 17, 503) / 16
  bins = rank_bins(score)
  assert np.bincount(bins).max() - np.bincount(bins).min() <= 1
  for easier, harder in zip(range(4), range(1, 5), strict=True):
    assert score[bins == easier].min() >= score[bins == harder].max()


def test_bins_part_a_row(outcomes):
  bins = rank_bins(np.random.default_rng(4).random(300))
  parts = by_bin(outcomes[2], bins)
  assert sum(part["problems"] for part in parts) == 300
  solved = sum(round(part["accuracy"] * part["problems"]) for part in parts)
  assert solved == rights(outcomes[2]).sum()
  tokens = sum(part["forward_tokens_per_problem"] * part["problems"] for part in parts)
  assert tokens == pytest.approx(sum(outcomes[2]["tokens"]))


@pytest.mark.parametrize(
  "accuracy, tokens",
  [(0.2, 10.0), (0.1, 5.0), (0.0, 0.0), (0.4, 40.0), (0.3, 20.0), (0.6, 160.0), (0.61, np.inf)],
)
def test_tokens_to_reach(accuracy, tokens):
  points = [(10.0, 0.2), (40.0, 0.4), (80.0, 0.4), (160.0, 0.6)]
  assert tokens_to_reach(accuracy, points) == pytest.approx(tokens)


def test_a_curves_own_point_takes_what_the_curve_takes(outcomes):
  found = token_ratio(outcomes[2], outcomes)
  assert found["ratio"] == pytest.approx(1.0) and found["reached"] == 1.0
  assert found["ci95"][0] == pytest.approx(1.0)  # in no resample does it take more


def test_half_the_tokens_are_a_ratio_of_a_half(outcomes):
  half = {**outcomes[3], "tokens": [t / 2 for t in outcomes[3]["tokens"]]}
  found = token_ratio(half, outcomes)
  assert found["ratio"] == pytest.approx(0.5)
  assert found["ci95"][0] == pytest.approx(0.5)


def test_what_a_curve_never_reaches_costs_its_last_point(outcomes):
  perfect = row(50, [True] * 300)
  found = token_ratio(perfect, outcomes)
  assert found["reached"] == 0.0
  assert found["curve_tokens"] == pytest.approx(np.mean(outcomes[-1]["tokens"]))


def test_the_ratios_interval_covers_the_truth():
  """Curve and row have known mean accuracies and tokens; 95 % of the intervals hold their ratio."""
  random = np.random.default_rng(5)
  hits = 0
  for seed in range(60):
    curve = [
      row(budget, random.random(200) < share)
      for budget, share in ((10, 0.2), (20, 0.4), (40, 0.6), (80, 0.8))
    ]
    found = token_ratio(row(15, random.random(200) < 0.5), curve, seed, resamples=300)
    hits += found["ci95"][0] <= 15 / (20 * 2**0.5) <= found["ci95"][1]
  assert hits >= 51


def test_rows_of_different_problems_are_refused(outcomes):
  with pytest.raises(UserError, match=r"rows of \[3, 300\] problems"):
    token_ratio(row(20, [True] * 3), outcomes)


def test_pooled_seeds_are_means_of_each_problem():
  a, b = pack([True, False, True], [1, 2, 3]), pack([True, True, False], [3, 2, 1])
  assert pool([a, b]) == {"right": [1.0, 0.5, 0.5], "tokens": [2.0, 2.0, 2.0]}
  assert rights(pool([a])).tolist() == rights(a).tolist()


def test_the_same_seed_twice_is_no_further_evidence(outcomes):
  once = token_ratio(outcomes[1], outcomes)
  assert token_ratio(pool([outcomes[1]] * 2), [pool([one] * 2) for one in outcomes]) == once
