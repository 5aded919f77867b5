import itertools

import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.evals.plan import Candidate, chains, fit, make_plan
from jaxzero.search.plan import Approach, Plan


def brute(bins, candidates, wanted):
  """The least (solves too few, tokens or missing) over all ways to give each bin a candidate."""
  best = None
  for choice in itertools.product(range(len(candidates)), repeat=int(bins.max()) + 1):
    solved = sum(candidates[c].right[bins == b].sum() for b, c in enumerate(choice))
    tokens = sum(candidates[c].tokens[bins == b].sum() for b, c in enumerate(choice))
    score = (0, tokens) if solved >= wanted else (1, -solved, tokens)
    best = score if best is None else min(best, score)
  return best


@pytest.mark.parametrize("seed", range(6))
def test_the_plan_is_the_optimum_over_all_choices(seed):
  random = np.random.default_rng(seed)
  count, bins = 40, random.integers(0, 4, 40)
  bins[:4] = range(4)
  candidates = [
    Candidate(
      (Approach("mcts", round(100 * share)),),
      random.random(count) < share,
      random.integers(1, 100, count),
    )
    for share in (0.2, 0.5, 0.6, 0.9)
  ]
  for wanted in (0, 10, 25, 33, 40):
    found, best = fit(bins, candidates, wanted), brute(bins, candidates, wanted)
    told = [(bins == b, candidates[c]) for b, c in enumerate(found.chosen)]
    assert found.solved == sum(c.right[here].sum() for here, c in told)
    assert found.tokens == sum(c.tokens[here].sum() for here, c in told)
    if found.solved >= wanted:
      assert best == (0, found.tokens)
    else:
      assert best == (1, -found.solved, found.tokens)


def test_easy_problems_get_the_cheap_way_and_hard_ones_the_dear():
  bins = np.repeat([0, 1], 50)
  cheap = Candidate((Approach("greedy"),), bins == 0, np.full(100, 10))
  dear = Candidate((Approach("mcts"),), np.ones(100, bool), np.full(100, 300))
  assert fit(bins, [cheap, dear], 100).chosen == (0, 1)
  assert fit(bins, [cheap, dear], 50).chosen == (0, 0)


@pytest.mark.parametrize("grain", [1e-9, 0.1, 1.0])
def test_a_plan_parts_the_problems_by_what_is_foreseen(grain):
  """Also where many problems look the same, and bins stay empty."""
  foreseen = np.round(np.random.default_rng(0).random(200) / grain) * grain
  easy = foreseen > 0.5
  cheap = Candidate((Approach("greedy"),), easy, np.full(200, 10))
  dear = Candidate((Approach("mcts"),), np.ones(200, bool), np.full(200, 300))
  plan, found = make_plan(foreseen, [cheap, dear], wanted=200)
  bins = plan.bin_of(foreseen)
  kinds = np.array([approaches[0].strategy for approaches in plan.bins])[bins]
  right, tokens = np.where(kinds == "mcts", True, easy), np.where(kinds == "mcts", 300, 10)
  assert (right.sum(), tokens.sum()) == (found.solved, found.tokens)
  assert found.solved == 200 and found.tokens < 200 * 300
  assert kinds[np.argmax(foreseen)] == "greedy" and kinds[np.argmin(foreseen)] == "mcts"
  assert Plan.from_dict(plan.to_dict()) == plan


def test_chains_end_at_the_whole_budget_and_carry_the_tuned_settings():
  settings = {
    "mcts": {"value_weight": 2.0, "vote": "best"},
    "best_of_n": {"temperature": 0.8, "aggregate": "min"},
  }
  for heard in (True, False):
    for chain in chains(heard, settings, (1, 2, 4, 8)):
      for one in chain:
        assert one.tokens in (1, 2, 4, None)
        assert dict(one.tree) == ({"value_weight": 2.0} if one.strategy == "mcts" else {})
        tuned = one.strategy == "best_of_n"
        assert (one.temperature, one.aggregate) == ((0.8, "min") if tuned else (None, None))
        assert one.accept is None or not heard
  assert len(set(map(str, chains(False, settings, (1, 2, 4, 8))))) == 8 + 9 + 9


def test_too_few_problems_make_no_bins():
  candidate = Candidate((Approach("mcts"),), np.ones(3, bool), np.ones(3))
  with pytest.raises(UserError, match="3 validation problems make no 4 bins"):
    make_plan(np.zeros(3), [candidate], 1)
