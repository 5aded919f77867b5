"""Curves of accuracy against forward tokens, from the outcomes of single problems.

An *outcome row* is what one way of thinking came to at one budget: who was solved and what each
problem cost. All rows of one study are of the same problems, so they are paired.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxzero.errors import UserError
from jaxzero.evals.stats import log_budget_trend, paired_bootstrap, wilson

BINS = 5


def pack(right: Sequence[bool], tokens: Sequence[int]) -> dict[str, Any]:
  """An outcome row as compact JSON: {"right": "0110...", "tokens": [n]}."""
  return {"right": "".join("01"[bool(r)] for r in right), "tokens": [int(t) for t in tokens]}


def rights(row: Mapping[str, Any]) -> np.ndarray:
  """[n] bool of a packed row: who was solved; of a pooled one [n] float, the seeds' share."""
  right = row["right"]
  if not isinstance(right, str):
    return np.asarray(right)
  return np.frombuffer(right.encode(), np.uint8) == ord("1")


def pool(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The rows of several seeds as one: each problem's mean over them. The seeds' problems are the
  same, so what a bootstrap resamples is still the problem."""
  return {
    "right": np.mean([rights(row) for row in rows], axis=0).tolist(),
    "tokens": np.mean([row["tokens"] for row in rows], axis=0).tolist(),
  }


def trend(rows: Sequence[Mapping[str, Any]], seed: int = 0) -> dict[str, Any]:
  """How accuracy goes with the budget.

  Args:
    rows: outcome rows of one way of thinking with their `budget`, two or more, rising.

  Returns:
    what `log_budget_trend` does, and `steps`: for each budget and the next one {"from", "to",
    "difference", "ci95", "p"} (paired bootstrap; p is not corrected for the number of steps).
  """
  solved = np.stack([rights(row) for row in rows])
  budgets = [row["budget"] for row in rows]
  steps = [
    {"from": low["budget"], "to": high["budget"]} | paired_bootstrap(solved[i + 1], solved[i], seed)
    for i, (low, high) in enumerate(itertools.pairwise(rows))
  ]
  return {**log_budget_trend(budgets, solved, seed), "steps": steps}


def compare(
  a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]], seed: int = 0
) -> list[dict[str, Any]]:
  """Accuracy of a minus accuracy of b at every budget that both have, by a paired bootstrap."""
  others = {row["budget"]: row for row in b}
  return [
    {"budget": row["budget"]} | paired_bootstrap(rights(row), rights(others[row["budget"]]), seed)
    for row in a
    if row["budget"] in others
  ]


def rank_bins(score: np.ndarray, bins: int = BINS) -> np.ndarray:
  """[n] int32 in 0..bins-1: equally many problems a bin, bin 0 the highest scores (the easiest).

  Of equal scores the earlier problem counts as the easier one.
  """
  order = np.argsort(-np.asarray(score, float), kind="stable")
  rank = np.empty(len(order), int)
  rank[order] = np.arange(len(order))
  return (rank * bins // max(len(order), 1)).astype(np.int32)


def by_bin(row: Mapping[str, Any], bins: np.ndarray) -> list[dict[str, Any]]:
  """A row's accuracy and mean cost in each bin of problems; bins: [n] as `rank_bins` gives."""
  right, tokens = rights(row), np.asarray(row["tokens"], float)
  parts = []
  for number in range(BINS):
    members = bins == number
    if members.any():
      solved, count = int(right[members].sum()), int(members.sum())
      parts.append(
        {
          "bin": number,
          "problems": count,
          "accuracy": solved / count,
          "ci95": list(wilson(solved, count)),
          "forward_tokens_per_problem": float(tokens[members].mean()),
        }
      )
  return parts


def tokens_to_reach(accuracy: float, points: Sequence[tuple[float, float]]) -> float:
  """Mean forward tokens at which a curve first reaches an accuracy; inf: never.

  Between two points accuracy is linear in the logarithm of tokens; below the first point it is
  linear from (0, 0), which is what answering only some of the problems gives.

  Args:
    points: (tokens, accuracy), tokens rising.
  """
  first_tokens, first = points[0]
  if accuracy <= first:
    return first_tokens * accuracy / first if first > 0 else 0.0
  for (t0, a0), (t1, a1) in itertools.pairwise(points):
    if a1 >= accuracy:
      share = (accuracy - a0) / (a1 - a0)
      return float(np.exp(np.log(t0) + share * (np.log(t1) - np.log(t0))))
  return float("inf")


def token_ratio(
  row: Mapping[str, Any],
  curve: Sequence[Mapping[str, Any]],
  seed: int = 0,
  resamples: int = 2000,
) -> dict[str, Any]:
  """Forward tokens that a row took over those that a curve takes to the same accuracy.

  Where the curve never gets there, its largest budget stands for what it would have taken, so the
  ratio is too high rather than too low; `reached` says how sure it gets there.

  Returns:
    {"ratio", "ci95" (bootstrap over problems, paired), "reached" (share of resamples in which the
    curve reaches the accuracy), "accuracy", "tokens", "curve_tokens"}.

  Raises:
    UserError: rows of different problems, or an empty curve.
  """
  sizes = {len(one["right"]) for one in (row, *curve)}
  if not curve or len(sizes) != 1 or not min(sizes):
    raise UserError(f"rows of {sorted(sizes)} problems cannot be paired; give the same problems.")
  solved = np.stack([rights(one) for one in (row, *curve)]).astype(float)  # [1 + k, n]
  tokens = np.stack([one["tokens"] for one in (row, *curve)]).astype(float)
  count = solved.shape[1]
  draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), resamples)
  weights = np.concatenate([np.ones((1, count)), draws]) / count  # the sample itself comes first
  accuracies, means = weights @ solved.T, weights @ tokens.T  # [1 + resamples, 1 + k]
  needed = np.array(
    [
      tokens_to_reach(a[0], sorted(zip(t[1:], a[1:], strict=True)))
      for a, t in zip(accuracies, means, strict=True)
    ]
  )
  reached = np.isfinite(needed)
  needed = np.where(reached, needed, means[:, 1:].max(axis=1))
  ratios = means[:, 0] / np.maximum(needed, 1e-9)
  return {
    "ratio": float(ratios[0]),
    "ci95": np.quantile(ratios[1:], [0.025, 0.975]).tolist(),
    "reached": float(reached[1:].mean()),
    "accuracy": float(accuracies[0, 0]),
    "tokens": float(means[0, 0]),
    "curve_tokens": float(needed[0]),
  }
