"""A few test problems searched for people to look at: what the model thought, and its tree."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from jaxzero.models.transformer import Params
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import load_params
from jaxzero.search.tree import to_dict
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import parse_completion

BUDGET = 128
"""Forward tokens: trees that a person can still take in."""


def searched_problems(run: Run, count: int = 3) -> dict[str, Any]:
  """The first test problems with a fork to search, each with its first tree (RUN/trees.json)."""
  params = load_params(run, "self_play")
  trees: list[dict[str, Any]] = []
  for problem in run.task.problems("test", 0, 4 * count):
    tree = search_tree(run, params, problem)
    trees += [tree] if tree else []
    if len(trees) == count:
      break
  return {"trees": trees}


def search_tree(run: Run, params: Params, problem: Problem) -> dict[str, Any] | None:
  """Plays the problem once by tree search, without noise; None if it met no fork."""
  engine = run.engine
  play = run.experiment.evaluation.play_at(BUDGET, run.experiment.self_play.play)
  rows = engine.rows(1)
  played = engine.play(
    params,
    engine.encode([problem], rows),
    jax.random.split(jax.random.key(run.experiment.seed), rows),
    np.full(rows, np.iinfo(np.int32).max, np.int32),
    0.0,
    0.0,
    play,
    verify_inside=run.task.self_checkable,
    stop_when_found=run.task.self_checkable,
  )
  if not played.trees.node_visits[0, 0]:
    return None
  found = bool(played.found.found[0])
  source = played.found if found else played
  root = int(played.trees.embeddings.length[0, 0])
  completion, _ = parse_completion(
    engine.tokenizer, source.completion[0, : source.length[0]].tolist()
  )
  return {
    **to_dict(played.trees, 0, engine.tokenizer, problem.prompt, int(source.completion[0, root])),
    "answer": completion.answer,
    "thinking": " ; ".join(completion.steps),
    "correct": found or bool(played.right[0]),
  }
