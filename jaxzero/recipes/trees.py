"""A few test problems searched for people to look at: what the model thought, and its tree."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxzero.models.transformer import Params
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import load_params
from jaxzero.search import one_tree
from jaxzero.search.config import PATH_ORDERS
from jaxzero.search.record import to_dict, trim
from jaxzero.search.request import Request
from jaxzero.tasks.transcript import parse_completion

BUDGET = 128
"""Forward tokens: trees that a person can still take in."""


def searched_problems(run: Run, count: int = 3) -> dict[str, Any]:
  """The first test problems whose trees have a fork, each with its tree (RUN/trees.json)."""
  trees = search_trees(run, load_params(run, "self_play"), 4 * count)
  return {"trees": [tree for tree in trees if _forks(tree)][:count]}


def search_trees(run: Run, params: Params, count: int) -> list[dict[str, Any]]:
  """The first test problems thought about once, without noise."""
  engine, play = run.engine, run.experiment.test_play
  if play.tree.order not in PATH_ORDERS:
    play = dataclasses.replace(play, tree=dataclasses.replace(play.tree, order="guided"))
  problems = run.task.problems("test", 0, count)
  seed = run.experiment.seed
  request = Request(engine, params, problems, "mcts", BUDGET, seed, play, batch_size=count)
  results, grown = one_tree.grow(request, keep_trees=count)
  trees = []
  for result, tree in zip(results, grown, strict=True):
    prompt, completion = result.problem.prompt, parse_completion(engine.tokenizer, result.tokens)[0]
    trees.append(
      {
        **to_dict(trim(tree), engine.tokenizer, prompt, result.tokens[0]),
        "answer": completion.answer,
        "thinking": " ; ".join(completion.steps),
        "correct": result.right,
      }
    )
  return trees


def _forks(tree: dict[str, Any]) -> bool:
  parents = [node["parent"] for node in tree["nodes"]]
  return len(set(parents)) < len(parents)
