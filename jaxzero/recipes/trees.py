"""A few test problems searched for people to look at: what the model thought, and its tree."""

from __future__ import annotations

from typing import Any

import jax

from jaxzero.models.transformer import Params
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import load_params
from jaxzero.search.config import PATH_ORDERS
from jaxzero.search.pool import think
from jaxzero.search.record import to_dict, trim
from jaxzero.tasks.transcript import parse_completion

BUDGET = 128
"""Forward tokens: trees that a person can still take in."""


def searched_problems(run: Run, count: int = 3) -> dict[str, Any]:
  """The first test problems whose trees have a fork, each with its tree (RUN/trees.json)."""
  trees = search_trees(run, load_params(run, "self_play"), 4 * count)
  return {"trees": [tree for tree in trees if _forks(tree)][:count]}


def search_trees(run: Run, params: Params, count: int) -> list[dict[str, Any]]:
  """The first test problems thought about once, without noise."""
  engine, tree_config = run.engine, run.experiment.evaluation.tree
  problems = run.task.problems("test", 0, count)
  inside = run.task.self_checkable
  keys = jax.random.split(jax.random.key(run.experiment.seed), count)
  order = tree_config.order if tree_config.order in PATH_ORDERS else "guided"
  config = tree_config.along_paths(order, BUDGET)
  thinking = think(
    engine,
    params,
    problems,
    keys,
    BUDGET,
    config,
    inside,
    batch_size=count,
    keep_trees=count,
    compact=True,
  )
  trees = []
  for i, problem in enumerate(problems):
    tokens, right = thinking.given(i)
    completion, _ = parse_completion(engine.tokenizer, tokens)
    trees.append(
      {
        **to_dict(trim(thinking.trees[i]), engine.tokenizer, problem.prompt, tokens[0]),
        "answer": completion.answer,
        "thinking": " ; ".join(completion.steps),
        "correct": right,
      }
    )
  return trees


def _forks(tree: dict[str, Any]) -> bool:
  parents = [node["parent"] for node in tree["nodes"]]
  return len(set(parents)) < len(parents)
