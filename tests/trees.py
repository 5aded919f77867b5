"""Trees made by hand: the paths that a test wants, as the arrays of an episode's tree."""

import numpy as np

from jaxzero.selfplay.episode import Episode
from jaxzero.tasks.transcript import encode_completion, encode_prompt


def tree_arrays(*paths, right=()):
  """The tree of some completions, as keyword arguments of `Episode`; those in `right` end right."""
  nodes, parent, token, verdict = {(): 0}, [-1], [0], [-1]
  right = {tuple(path.tolist()) for path in right}
  for path in paths:
    tokens = tuple(path.tolist())
    for depth in range(1, len(tokens) + 1):
      if tokens[:depth] not in nodes:
        parent.append(nodes[tokens[: depth - 1]])
        token.append(tokens[depth - 1])
        nodes[tokens[:depth]] = len(verdict)
        verdict.append(1 if tokens[:depth] in right else -1)
  M = len(parent)
  return {
    "tree_parent": np.array(parent, np.int32),
    "tree_token": np.array(token, np.int32),
    "tree_prior": np.zeros(M, np.float32),
    "tree_visits": np.ones(M, np.int32),
    "tree_value": np.full(M, 0.5, np.float32),
    "tree_verdict": np.array(verdict, np.int8),
  }


def worked_episode(task, tokenizer, number, right=True, A=4):
  """A training problem's worked example as what was found: played so, or after a game was lost."""
  problem = task.problem("train", 0, number)
  tokens = np.array(encode_completion(tokenizer, task.worked_example(problem)), np.int32)
  played = tokens if right else np.array([*tokens[:3], tokenizer.end_id], np.int32)
  H = len(tokens)
  tree = tree_arrays(tokens, played, right=[tokens])
  if not right:
    tree["tree_verdict"][-1] = 0
  return Episode(
    episode_id=f"0-0-{number}",
    problem_id=problem.id,
    prompt=problem.prompt,
    prompt_tokens=np.array(encode_prompt(tokenizer, problem), np.int32),
    tokens=played,
    harvested=tokens,
    candidates=np.array(
      [
        [token, *np.delete(np.arange(A), token)[: A - 1]] if token < A else [token, *range(A - 1)]
        for token in tokens
      ],
      np.int32,
    ),
    weights=np.full((H, A + 1), 1 / (A + 1), np.float32),
    values=np.full(H, 0.5, np.float32),
    visit_counts=np.ones((H, A), np.int32),
    right=right,
    truncated=False,
    forward_tokens=len(tree["tree_parent"]) - 1,
    model_step=number,
    search={},
    **tree,
  )
