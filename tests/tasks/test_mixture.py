"""A mixture is its members, each with its own verifier, in Python and in JAX."""

import pytest
from automata import Reader, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.evals.evaluate import by_task
from jaxzero.search.strategies import SearchResult
from jaxzero.tasks.base import SPLITS, TaskConfig
from jaxzero.tasks.programs_device import ALPHABET
from jaxzero.tokenizers import Tokenizer

NAME = "countdown+arithmetic+programs"
CONFIG = TaskConfig(name=NAME, numbers=3, max_number=9, max_target=99)
TASK = tasks.make(CONFIG)
MEMBERS = [tasks.make(TaskConfig(name, 3, 9, 99)) for name in NAME.split("+")]
TOKENIZER = Tokenizer.train(["(2 5 1)=8", "2 5 6 = 32"], symbols=TASK.symbols)
PROBLEMS = TASK.problems("train", 0, 12)


@pytest.fixture(scope="module")
def reader(quick_compiles):
  return Reader(TASK, TOKENIZER)


def test_problems_come_from_each_member_in_turn():
  for split in SPLITS:
    for index in range(9):
      problem, member = TASK.problem(split, 5, index), MEMBERS[index % 3]
      own = member.problem(split, 5, index // 3)
      assert (problem.id, problem.prompt) == (f"{member.name}: {own.id}", own.prompt)
      assert problem.key == own.key and problem.meta["task"] == member.name
      assert TASK.parse(problem.prompt) == TASK.parse(problem.id) == problem
      assert TASK.parse(problem.prompt).meta == problem.meta
      completion = TASK.worked_example(problem)
      assert completion == member.worked_example(own)
      assert TASK.verify(problem, completion.answer, completion.steps).right
      assert TASK.solvable(problem, completion.steps[0])


def test_the_strictest_member_decides_the_rights():
  assert not TASK.self_checkable
  assert tasks.make(TaskConfig("countdown+programs")).self_checkable
  assert TASK.symbols == MEMBERS[2].symbols


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_the_automaton_agrees_for_every_member(reader, data):
  problem = data.draw(st.sampled_from(PROBLEMS))
  rows = data.draw(rows_of(TASK, TOKENIZER, problem, ALPHABET + "/"))
  assert all(reader.check(problem, rows)[:2])


def test_a_completion_of_another_member_is_not_right(reader):
  rows = [reader.encode(TASK.worked_example(problem)) for problem in PROBLEMS[:3]]
  for i, problem in enumerate(PROBLEMS[:3]):
    assert reader.check(problem, rows) == [i == j for j in range(3)]


@pytest.mark.parametrize("prompt", ["", "hello", "arithmetic: 2 5 6 = 32", "programs: 1+1", "(1)"])
def test_a_prompt_that_no_member_reads_is_refused(prompt):
  with pytest.raises(UserError, match="a good prompt looks like"):
    TASK.parse(prompt)


@pytest.mark.parametrize("name", ["countdown+countdown", "countdown+", "+", "countdown+chess"])
def test_what_is_no_mixture_is_refused(name):
  with pytest.raises(UserError, match=r"unknown task|two tasks or more"):
    tasks.make(TaskConfig(name=name))


def test_accuracy_is_split_by_task():
  results = [SearchResult(one, (), None, i % 2 == 0, 1, 1.0) for i, one in enumerate(PROBLEMS)]
  shares = by_task(results)
  assert list(shares) == sorted(NAME.split("+"))
  assert all(share == {"problems": 4, "solved": 2, "accuracy": 0.5} for share in shares.values())
  assert by_task([SearchResult(MEMBERS[0].problem("train", 0, 0), (), None, True, 1, 1.0)]) == {}
