"""Accuracy against cost: one `evaluation` object per (model, strategy, budget)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxzero.evals.stats import wilson
from jaxzero.models.transformer import Params
from jaxzero.search.choose import Choice
from jaxzero.search.config import Lanes
from jaxzero.search.engine import Engine
from jaxzero.search.plan import Plan
from jaxzero.search.play import PlayConfig
from jaxzero.search.request import SearchResult, hears_verifier
from jaxzero.search.strategies import search
from jaxzero.tasks.base import Problem


def evaluate(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  strategy: str,
  budget: int,
  seed: int = 0,
  split: str = "test",
  step: int = 0,
  play: PlayConfig | None = None,
  batch_size: int = 256,
  temperature: float = 1.0,
  verify_inside: bool | None = None,
  choice: Choice = Choice(),
  samples: int | None = None,
  lanes: Lanes = Lanes(),
  accept: float | None = None,
  plan: Plan | None = None,
) -> tuple[dict[str, Any], list[SearchResult]]:
  """Runs a strategy over problems; returns DESIGN's `eval` object and the single results.

  Of a mixture of tasks the object says `by_task`, too.
  """
  begin = time.monotonic()
  results = search(
    engine,
    params,
    problems,
    strategy,
    budget,
    seed,
    play,
    batch_size,
    temperature,
    verify_inside,
    choice,
    samples,
    lanes,
    accept,
    plan,
  )
  solved = sum(result.right for result in results)
  forward_tokens = [result.forward_tokens for result in results]
  low, high = wilson(solved, len(results))
  return {
    "task": engine.task.name,
    "split": split,
    "strategy": strategy,
    "budget": budget,
    "problems": len(results),
    "solved": solved,
    "accuracy": solved / len(results),
    "ci95": [low, high],
    "forward_tokens_per_problem": float(np.mean(forward_tokens)),
    "flops_per_problem": float(np.mean([result.flops for result in results])),
    "wall_s": time.monotonic() - begin,
    "step": step,
    "seed": seed,
    "prm": engine.scorer is not None,
    "choice": dataclasses.asdict(choice),
    "samples": samples,
    "verified_inside": hears_verifier(engine, strategy, verify_inside, choice),
    **({"by_task": shares} if (shares := by_task(results)) else {}),
  }, results


def by_task(results: Sequence[SearchResult]) -> dict[str, dict[str, float]]:
  """Problems, solved and accuracy of every task of a mixture; empty where there is one task."""
  of_task: dict[str, list[bool]] = {}
  for result in results:
    if "task" in result.problem.meta:
      of_task.setdefault(result.problem.meta["task"], []).append(result.right)
  return {
    name: {"problems": len(right), "solved": sum(right), "accuracy": sum(right) / len(right)}
    for name, right in sorted(of_task.items())
  }
