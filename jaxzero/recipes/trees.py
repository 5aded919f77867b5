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


def searched_problems(run: Run, count: int = 3) -> dict[str, Any]:
  """The first test problems, each with the tree of its first search (RUN/trees.json)."""
  params = load_params(run, "self_play")
  return {"trees": search_trees(run, params, run.task.problems("test", 0, count))}


def search_trees(run: Run, params: Params, problems: list[Problem]) -> list[dict[str, Any]]:
  """Plays each problem once by tree search, without noise; one tree dict a problem."""
  engine = run.engine
  play = run.experiment.evaluation.play_at(4, run.experiment.self_play.play)
  trees = []
  for problem in problems:
    rows = engine.rows(1)
    batch = engine.encode([problem], rows)
    played = engine.play(
      params,
      batch,
      jax.random.split(jax.random.key(run.experiment.seed), rows),
      np.full(rows, np.iinfo(np.int32).max, np.int32),
      0.0,
      0.0,
      play,
      verify_inside=run.task.self_checkable,
      stop_when_found=run.task.self_checkable,
    )
    found = bool(played.found.found[0])
    source = played.found if found else played
    tokens = source.completion[0, : source.length[0]]
    searched = np.flatnonzero(played.moves.searched[0])
    chosen = int(played.completion[0, searched[0]]) if len(searched) else -1
    completion, _ = parse_completion(engine.tokenizer, tokens.tolist())
    trees.append(
      {
        **to_dict(played.trees, 0, engine.tokenizer, problem.prompt, chosen),
        "answer": completion.answer,
        "thinking": " ; ".join(completion.steps),
        "correct": found or bool(played.right[0]),
      }
    )
  return trees
