"""auto: what is foreseen puts a problem into a bin, and its plan's approaches share the budget."""

import dataclasses

import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.search import auto
from jaxzero.search.choose import Choice, Finished
from jaxzero.search.plan import Approach, Plan
from jaxzero.search.request import Request
from jaxzero.search.strategies import search

pytestmark = pytest.mark.usefixtures("quick_compiles")


@pytest.fixture(scope="module")
def think(engine1, params, problems):
  def results(strategy, budget=75, **options):
    options = {"verify_inside": False, **options}
    return search(engine1, params, problems, strategy, budget, **options)

  return results


def key(results):
  return [(r.tokens, r.right, r.forward_tokens, r.finished) for r in results]


@pytest.mark.parametrize("accept", [None, 0.5])
def test_one_bin_of_one_approach_is_the_strategy_it_names(think, accept):
  plan = Plan(((Approach("best_of_n", accept=accept, vote="weighted", temperature=0.8),),))
  named = think("best_of_n", accept=accept, choice=Choice(vote="weighted"), temperature=0.8, seed=3)
  assert key(think("auto", plan=plan, seed=3)) == key(named)


@pytest.fixture(scope="module")
def foreseen(engine1, params, problems):
  value, logits = engine1.foresee(engine1.gather(params), engine1.encode(problems, 8))
  np.testing.assert_allclose(np.exp(logits).sum(axis=1), 1.0, rtol=1e-5)
  return value


def test_a_bin_does_not_disturb_another(think, foreseen):
  edge = float(np.median(foreseen))
  plan = Plan(((Approach("greedy"),), (Approach("best_of_n"),)), (edge,))
  together, easy, hard = think("auto", plan=plan), think("greedy"), think("best_of_n")
  chosen = [a if f >= edge else b for a, b, f in zip(easy, hard, foreseen, strict=True)]
  # In a batch of another size the last bit of a score may be another.
  assert [one[:3] for one in key(together)] == [one[:3] for one in key(chosen)]
  assert sum(f >= edge for f in foreseen) == 4


def test_no_more_tries_once_a_completion_is_accepted(think):
  everything = think("best_of_n", 150)
  scores = np.sort([one.scores[-1] for result in everything for one in result.finished])
  middle = len(scores) // 2
  enough = float(scores[middle - 1 : middle + 1].mean())
  early = 0
  for all_of_it, result in zip(everything, think("best_of_n", 150, accept=enough), strict=True):
    accepted = [i for i, one in enumerate(all_of_it.finished) if one.scores[-1] >= enough]
    expected = all_of_it.finished[: accepted[0] + 1] if accepted else all_of_it.finished
    assert [(x.tokens, x.spent) for x in result.finished] == [(x.tokens, x.spent) for x in expected]
    spent = expected[-1].spent if accepted else all_of_it.forward_tokens
    assert result.forward_tokens == spent
    early += spent < all_of_it.forward_tokens
  assert early >= 2


@pytest.fixture
def told(engine1, problems):
  """What two made-up strategies were asked; the problems' names end in 0..7."""
  asked = []

  def made_up(tokens, score, right=None):
    def run(request):
      asked.append(request)
      finished = (Finished((5, 6), "6", (score,), tokens, right),)
      return [
        dataclasses.replace(request.result(i, finished, (), cap, 1.0), forward_tokens=cap)
        for i, cap in enumerate(np.minimum(request.caps, tokens).tolist())
      ]

    return run

  def run(plan, first, second, budget=50, accept=None):
    asked.clear()
    request = Request(
      engine1, {}, problems, "auto", budget, verify_inside=False, plan=plan, accept=accept
    )
    runners = {"greedy": made_up(*first), "best_of_n": made_up(*second), "auto": auto.run}
    return auto.run(request, runners), asked

  return run


def test_approaches_share_one_budget(told, problems):
  plan = Plan(((Approach("greedy", tokens=25, accept=0.8), Approach("best_of_n")),))
  results, asked = told(plan, (20, 0.7), (99, 0.1))
  first, second = asked
  assert first.caps.tolist() == [25] * 8 and second.caps.tolist() == [30] * 8
  assert first.seed != second.seed and second.accept is None and first.accept == 0.8
  for result in results:
    assert result.forward_tokens == 50 and result.flops == 2.0
    assert [one.spent for one in result.finished] == [20, 20 + 99]
    assert result.tokens == (5, 6)
  assert [r.problem for r in results] == problems


@pytest.mark.parametrize("end", [(20, 0.8), (20, 0.0, True), (50, 0.1)])
def test_what_is_accepted_verified_or_broke_is_settled(told, end):
  plan = Plan(((Approach("greedy", accept=0.8), Approach("best_of_n")),))
  results, asked = told(plan, end, (99, 1.0))
  assert len(asked) == 1 and all(r.forward_tokens == end[0] for r in results)


def test_a_grade_settles_nothing(told, monkeypatch):
  """The host grades by the key: a right answer that the search does not know of goes on."""
  monkeypatch.setattr(
    "jaxzero.search.request.grade", lambda *_: type("Verdict", (), {"right": True})
  )
  plan = Plan(((Approach("greedy", accept=0.8), Approach("best_of_n")),))
  results, asked = told(plan, (20, 0.1), (9, 0.1))
  assert len(asked) == 2 and all(r.right and r.forward_tokens == 29 for r in results)


def test_a_plan_is_read_as_it_was_written():
  hard = (
    Approach("beam", 25, 0.7, 1.2, "min", "weighted"),
    Approach("mcts", tree={"depth_bonus": 1.0}),
  )
  plan = Plan(((Approach("greedy"),), hard), (0.4,))
  assert Plan.from_dict(plan.to_dict()) == plan


def test_bins_are_parted_at_their_edges():
  plan = Plan(((Approach("greedy"),),) * 3, (0.7, 0.2))
  assert plan.bin_of([0.9, 0.7, 0.69, 0.2, 0.1]).tolist() == [0, 0, 1, 1, 2]


@pytest.mark.parametrize(
  ("make", "says"),
  [
    (lambda: Plan(((Approach("greedy"),),), (0.5,)), "1 bins needs 0 falling edges"),
    (lambda: Plan(((Approach("greedy"),),) * 3, (0.2, 0.7)), "falling"),
    (lambda: Plan(((),)), "at least one approach"),
    (lambda: Approach("greedy", tokens=0), "tokens=0"),
    (lambda: Approach("greedy", accept=1.5), "accept=1.5"),
    (lambda: Approach("greedy", vote="loud"), "vote='loud'"),
    (lambda: Approach("mcts", tree={"depth": 1}), "tree of mcts has no depth"),
    (lambda: Plan.from_dict({"edges": []}), "no plan"),
    (lambda: Plan.from_dict({"bins": [[{"speed": 1}]], "edges": []}), "no plan"),
  ],
)
def test_a_plan_that_is_none_is_refused(make, says):
  with pytest.raises(UserError, match=says):
    make()


@pytest.mark.parametrize(
  ("strategy", "options", "says"),
  [
    ("auto", {"plan": Plan(((Approach("oracle"),),))}, "'oracle'.*greedy, sample"),
    ("auto", {"plan": Plan(((Approach("auto"),),))}, "'auto'"),
    ("mcts", {"accept": 0.5}, "one tree"),
    ("best_of_n", {"accept": -0.5}, "accept=-0.5"),
  ],
)
def test_nonsense_is_refused(think, strategy, options, says):
  with pytest.raises(UserError, match=says):
    think(strategy, **options)
