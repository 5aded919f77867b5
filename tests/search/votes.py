"""The choice among finished completions: every definition written out once more."""

import collections

import numpy as np


def plain(candidates, aggregate, vote):
  """The index that wins among (answer, scores, log p or None) triples."""
  from_tree = any(log_p is not None for *_, log_p in candidates)
  counts = [
    (0.0 if from_tree else 1.0) if log_p is None else np.exp(log_p) ** 0.5
    for *_, log_p in candidates
  ]
  totals = [
    count
    * {
      "last": scores[-1],
      "min": sorted(scores)[0],
      "product": float(np.prod(scores)),
      "mean": sum(scores) / len(scores),
    }[aggregate]
    for (_, scores, _), count in zip(candidates, counts, strict=True)
  ]
  totals = [total if count else -1.0 for total, count in zip(totals, counts, strict=True)]
  answers = [answer.replace(" ", "") for answer, *_ in candidates]
  count, mass, best_of = collections.Counter(), collections.Counter(), {}
  for answer, total, each in zip(answers, totals, counts, strict=True):
    count[answer] += each
    mass[answer] += total if each else 0.0
    best_of[answer] = max(total, best_of.get(answer, 0.0))
  votes = {"weighted": mass, "majority": count}

  def rank(i):
    # Of answers with equal votes the better one wins, then the first; in it the best completion.
    answer = answers[i]
    of_answer = (
      () if vote == "best" else (votes[vote][answer], best_of[answer], -answers.index(answer))
    )
    return (*of_answer, totals[i], -i)

  return max(range(len(candidates)), key=rank)
