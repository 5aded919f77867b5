"""Is a step score true? Graded on a task that can decide what any prefix may still become.

Solutions are sampled by the policy, to their end. Where each of their steps ends, scores are held
against two oracles: whether any right completion is left (exact), and how often the policy itself
ends right from there (256 samples). A position is decided by legality where the step is illegal:
those are shown apart, and so is the last step, behind which a right solution has reached its goal.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxzero.evals.ranking import (
  auroc,
  best_threshold,
  brier,
  calibration_error,
  first_error_f1,
)
from jaxzero.learn.reward import StepScorer, distinct_prefixes
from jaxzero.models.transformer import Params
from jaxzero.search.engine import Engine
from jaxzero.selfplay.labels import StepLabels, Tried, make_table
from jaxzero.tasks.base import Problem
from jaxzero.tokenizers import Tokenizer

PROMPT, STEP, LAST, END = "prompt", "step", "last step", "answer"
RESAMPLES = 1000


@dataclasses.dataclass(frozen=True)
class Solutions:
  """Solutions that the policy sampled, and what the oracles say of their step ends (m of them)."""

  texts: StepLabels
  row: np.ndarray  # [m] int, which solution
  column: np.ndarray  # [m] int, tokens read
  position: np.ndarray  # [m] str: prompt, step 1, step 2, ..., last step, answer
  solvable: np.ndarray  # [m] bool
  illegal: np.ndarray  # [m] bool: the verifier, reading along, knows that it is lost
  success: np.ndarray  # [m] float: share of the policy's samples that end right
  cost: Mapping[str, float]

  def steps(self, scores: np.ndarray) -> list[list[float]]:
    """The scores [m] of the steps of each solution that came to an end, without the prompt's."""
    ended = np.isin(self.row, self.row[self.position == END]) & (self.position != PROMPT)
    steps: dict[int, list[float]] = {}
    for row, score in zip(self.row[ended].tolist(), scores[ended].tolist(), strict=True):
      steps.setdefault(row, []).append(score)
    return list(steps.values())

  @property
  def errors(self) -> list[int]:
    """The first step behind which nothing right is left, of each solution that came to an end; -1
    if there is none."""
    return [
      next((index for index, good in enumerate(steps) if not good), -1)
      for steps in self.steps(self.solvable)
    ]


def sample_solutions(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  samples: int,
  seed: int,
  progress: Callable[[], Any] = lambda: None,
) -> Solutions:
  """One solution a problem, and both oracles' words on it.

  Args:
    samples: completions of every prefix that tell the policy's own success; 0: they are not asked.
  """
  first = Tried(engine, params, 1, seed, 256, progress)
  first.measure([(problem, ()) for problem in problems], verify_inside=False)
  solutions = [(problem, first.sampled[problem, ()][0]) for problem in problems]
  prefixes = [prefix for one in solutions for prefix in first.prefixes(*one)]
  tried = Tried(
    engine, params, max(samples, 1), seed + 1, max(1, 2048 // max(samples, 1)), progress
  )
  tried.measure(prefixes)
  tokenizer, task = engine.tokenizer, engine.task
  rows: list[tuple[Any, ...]] = []
  for row, (problem, tokens) in enumerate(solutions):
    number = 0
    for prefix in first.prefixes(problem, tokens):
      read = prefix[1]
      number += read[-1:] == (tokenizer.step_id,)
      is_last = read[-1:] == (tokenizer.end_think_id,)
      name = LAST if is_last else f"{STEP} {number}" if read else PROMPT
      solvable = task.solvable(problem, tokenizer.render(read))
      rows.append((row, len(read), name, solvable, prefix in tried.lost, tried.share(prefix)))
    if tokens[-1:] == (tokenizer.end_id,):
      right = first.is_right((problem, tokens))
      rows.append((row, len(tokens), END, right, not right, float(right)))
  cost = {name: value + tried.cost[name] for name, value in first.cost.items()}
  texts = make_table(engine, first, solutions, {})
  columns = [np.asarray(column) for column in zip(*rows, strict=True)]
  row_of, column, position, can_be, illegal, success = columns
  return Solutions(texts, row_of, column, position, can_be, illegal, success, cost)


def ranking(scores: np.ndarray, labels: StepLabels, tokenizer: Tokenizer) -> float:
  """How well scores [n, C + 1] do what they are for, by labels alone: the mean of two AUROCs, of
  steps (distinct ones, not known to be lost, by whether any sample ended right) and of completions
  that came to their end (by the verdict). 0.5 where there is nothing to tell apart."""
  row, read = distinct_prefixes(labels, tokenizer.step_id).T
  ended = labels.ended(tokenizer)
  areas = (
    auroc(scores[row, read], labels.success[row, read] > 0),
    auroc(scores[ended, labels.length[ended]], labels.right[ended]),
  )
  known = [area for area in areas if area is not None]
  return float(np.mean(known)) if known else 0.5


def grade_scores(
  scorer: StepScorer,
  judges: Mapping[str, Params],
  test: Solutions,
  validation: Solutions,
  seed: int = 0,
) -> dict[str, Any]:
  """Every judge's grades at every position, and pooled over the undecided ones.

  Args:
    judges: parameters by name, such as the PRM's and the policy's (its value head).
    validation: chooses the thresholds of the first-error F1, and nothing else.

  Returns:
    {"positions": [row, ...], "undecided": row, "first_error": {judge: {"f1", "erroneous",
    "correct", "threshold"}}}. A row has `position`, `prefixes`, `illegal`, `solvable` (shares) and
    for each judge a dict of `auroc`, `auroc_illegal_too` (against solvability; legal prefixes
    alone, or all), `auroc_success`, `ece`, `brier` (against the policy's own success; legal ones
    alone) and `mean_illegal`, the mean score of illegal ones. Null: undefined, as there is only
    one class, or nothing. The row `undecided` pools all steps but the last; null where there is
    none. It has `auroc_ci95` (bootstrap over problems) and, for every judge but the first,
    `first_minus_this_ci95`.
  """
  at = (test.row, test.column)
  scores = {name: scorer(params, test.texts)[at] for name, params in judges.items()}
  steps = {str(name) for name in test.position if name.startswith(STEP)}
  names = [PROMPT, *sorted(steps, key=lambda name: int(name.split()[1])), LAST, END]
  table = [
    _row(name, test, scores, here) for name in names if (here := test.position == name).any()
  ]
  pooled = np.isin(test.position, list(steps))
  row = _row("undecided", test, scores, pooled) if (pooled & ~test.illegal).any() else None
  if row is not None:
    _add_intervals(row, test, scores, pooled & ~test.illegal, seed)
  found = {}
  held_out = (validation.row, validation.column)
  for name, params in judges.items():
    tuned = validation.steps(scorer(params, validation.texts)[held_out])
    threshold = best_threshold(tuned, validation.errors)
    told = first_error_f1(test.steps(scores[name]), test.errors, threshold)
    found[name] = {**told, "threshold": threshold}
  return {"positions": table, "undecided": row, "first_error": found}


def _row(
  name: str, test: Solutions, scores: Mapping[str, np.ndarray], here: np.ndarray
) -> dict[str, Any]:
  legal, wrong = here & ~test.illegal, here & test.illegal
  row: dict[str, Any] = {
    "position": name,
    "prefixes": int(here.sum()),
    "illegal": float(test.illegal[here].mean()),
    "solvable": float(test.solvable[here].mean()),
  }
  for judge, score in scores.items():
    row[judge] = {
      "auroc": auroc(score[legal], test.solvable[legal]) if legal.any() else None,
      "auroc_illegal_too": auroc(score[here], test.solvable[here]),
      "auroc_success": auroc(score[legal], test.success[legal]) if legal.any() else None,
      "ece": calibration_error(score[legal], test.success[legal]) if legal.any() else None,
      "brier": brier(score[legal], test.success[legal]) if legal.any() else None,
      "mean_illegal": float(score[wrong].mean()) if wrong.any() else None,
    }
  return row


def _add_intervals(
  row: dict[str, Any],
  test: Solutions,
  scores: Mapping[str, np.ndarray],
  legal: np.ndarray,
  seed: int,
) -> None:
  random = np.random.default_rng(seed)
  index = [np.flatnonzero(legal & (test.row == one)) for one in np.unique(test.row[legal])]
  drawn: dict[str, list[float]] = {name: [] for name in scores}
  for _ in range(RESAMPLES):
    some = np.concatenate([index[i] for i in random.integers(len(index), size=len(index))])
    for name, score in scores.items():
      area = auroc(score[some], test.solvable[some])
      drawn[name].append(np.nan if area is None else area)
  first = next(iter(scores))
  for name, values in drawn.items():
    row[name]["auroc_ci95"] = np.nanquantile(values, [0.025, 0.975]).tolist()
    if name != first:
      gain = np.asarray(drawn[first]) - np.asarray(values)
      row[name]["first_minus_this_ci95"] = np.nanquantile(gain, [0.025, 0.975]).tolist()
