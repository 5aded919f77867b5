"""The choice among finished completions: every definition written out once more."""

import collections

import numpy as np


def plain(candidates, aggregate, vote):
  """The index that wins among (answer, scores) pairs."""
  totals = [
    {
      "last": scores[-1],
      "min": sorted(scores)[0],
      "product": float(np.prod(scores)),
      "mean": sum(scores) / len(scores),
    }[aggregate]
    for _, scores in candidates
  ]
  answers = [answer.replace(" ", "") for answer, _ in candidates]
  count, mass, best_of = collections.Counter(answers), collections.Counter(), {}
  for answer, total in zip(answers, totals, strict=True):
    mass[answer] += total
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
