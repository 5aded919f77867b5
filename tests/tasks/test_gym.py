"""The audit of reasoning-gym's tasks: our own answers against the package's, and its absence."""

import dataclasses
import re
import sys
import time

import pytest
from automata import Reader, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.tasks import script_device
from jaxzero.tasks.base import SPLITS, Completion, TaskConfig
from jaxzero.tasks.gym import canonical
from jaxzero.tasks.gym_problems import GYM_TASKS
from jaxzero.tasks.streams import split_of
from jaxzero.tasks.transcript import encode_completion, grade
from jaxzero.tokenizers import Tokenizer

reasoning_gym = pytest.importorskip("reasoning_gym")

NAMES = sorted(GYM_TASKS)
GCD = tasks.make(TaskConfig(name="gym_gcd"))
TOKENIZER = Tokenizer.train(["gcd 760 368", "760-2*368=24"])


def example(name):
  return GYM_TASKS[name].example.partition(",")[0]


@pytest.fixture(scope="module")
def reader(quick_compiles):
  return Reader(GCD, TOKENIZER, width=120)


def test_there_are_at_least_eight():
  assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_our_answers_are_the_package_s_and_no_others(name):
  spec, task = GYM_TASKS[name], tasks.make(TaskConfig(name=name))
  items = reasoning_gym.create_dataset(spec.dataset, seed=7, size=200, **spec.settings)
  audited = 0
  for item in items:
    try:
      problem = task.parse(spec.prompt(item["metadata"]))
    except UserError:
      continue
    theirs = item["answer"].replace(" × ", "*")
    assert task.verify(problem, theirs).right, (item, problem)
    assert (problem.key is None) == task.self_checkable
    worked = task.worked_example(problem)
    assert worked.answer == theirs and task.verify(problem, theirs, worked.steps).right
    for wrong in (theirs + "0", "0" + theirs, f" {theirs}", "", theirs[:-1], f"({theirs})", "-1"):
      assert wrong == theirs or not task.verify(problem, wrong).right, (problem, wrong)
    assert not task.verify(problem, theirs, [*worked.steps, "1+1=2"]).right
    assert not task.verify(problem, theirs, worked.steps[:-1]).right or not worked.steps
    audited += 1
  assert audited >= 190, "few items of the package are of a form that is left out"


@pytest.mark.parametrize("name", NAMES)
def test_every_step_of_a_worked_example_is_true_and_its_prefixes_solvable(name):
  task = tasks.make(TaskConfig(name=name))
  for problem in task.problems("train", 3, 15):
    completion = task.worked_example(problem)
    for step in completion.steps:
      left, right = step.split("=")
      if name == "gym_count_bits":
        assert int(left) == int(right, 2)
      else:
        assert rational(left) == rational(right), step
    row = encode_completion(TOKENIZER, completion)[:-1]
    assert all(task.solvable(problem, TOKENIZER.render(row[:i])) for i in range(len(row) + 1))
    assert not task.solvable(problem, TOKENIZER.render(row) + "1")


def rational(text):
  """The value of `-7/2*3+1`, from left to right within a term; our own texts alone."""
  total = 0
  for sign, term in re.findall(r"([+-]?)([0-9]+(?:[*/]-?[0-9]+)*)", text):
    value = 1 if not sign or sign == "+" else -1
    for op, number in re.findall(r"([*/]?)(-?[0-9]+)", term):
      value = value / int(number) if op == "/" else value * int(number)
    total += value
  return total


@pytest.mark.parametrize("name", NAMES)
def test_streams_are_pure_and_splits_disjoint(name):
  task = tasks.make(TaskConfig(name=name))
  for split in SPLITS:
    problems = task.problems(split, 1, 8)
    assert problems == task.problems(split, 1, 8)
    assert all(split_of(canonical(problem.id)) == split for problem in problems)
    assert all(task.parse(problem.prompt) == problem for problem in problems)


def test_the_order_of_operands_makes_no_new_problem_for_the_splits():
  assert canonical("gcd 12 18") == canonical("gcd 18 12") != canonical("lcm 12 18")
  assert canonical("sum 3+4-5") == canonical("sum 4+3-5") != canonical("sum 3+4+5")


def test_prime_factors_multiply_to_the_number():
  task = tasks.make(TaskConfig(name="gym_prime_factorization"))
  for number in range(2, 400):
    factors = list(map(int, task.worked_example(task.parse(f"factor {number}")).answer.split("*")))
    product = 1
    for factor in factors:
      assert all(factor % d for d in range(2, factor))
      product *= factor
    assert product == number and factors == sorted(factors)


BAD = "sum 1|product 2*3*4|gcd 0 4|lcm 5|simplify 3/0|bits 0|convert 12 2 7|convert 1 1 2|factor 1"
BAD += "|solve x=x|solve 2*x=3|solve 5=5|gcd 1 2 3|gcd \u0661 2|2 5 6 = 32|"


@pytest.mark.parametrize("name", NAMES)
def test_a_bad_prompt_is_one_sentence(name):
  task = tasks.make(TaskConfig(name=name))
  assert task.parse(f" {example(name)} ").prompt == example(name)
  for prompt in [*BAD.split("|"), example(name) + "9" * 100]:
    with pytest.raises(UserError, match="a good prompt looks like"):
      task.parse(prompt)


def test_long_workings_are_refused_before_a_model_is_asked():
  task = tasks.make(TaskConfig(name="gym_gcd"))
  with pytest.raises(UserError, match="tokens to work out, over 200"):
    task.parse("gcd 6765 4181")


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(NAMES), st.text(), st.text(alphabet="0123456789+-*/= "))
def test_any_text_gets_a_verdict_in_time(name, text, other):
  task = tasks.make(TaskConfig(name=name))
  problem = task.parse(example(name))
  begin = time.process_time()
  task.verify(problem, text, [other, text])
  task.verify(problem, other * 1000, [other * 1000])
  task.solvable(problem, text)
  assert time.process_time() - begin < 0.1


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_automaton_agrees_on_right_mutated_and_random_completions(reader, data):
  problem = GCD.parse(data.draw(st.sampled_from(["gcd 760 368", "gcd 6 6", "gcd 1 999"])))
  rows = data.draw(rows_of(GCD, TOKENIZER, problem, script_device.ALPHABET))
  assert reader.check(problem, rows)[0]


def test_without_a_key_nothing_is_right_and_only_the_form_is_judged(reader):
  problem = GCD.parse("gcd 760 368")
  hidden = dataclasses.replace(problem, key=None)
  row = reader.encode(GCD.worked_example(problem))
  assert not GCD.problem_array(hidden).any() and not grade(GCD, TOKENIZER, hidden, row).right
  wrong_form = [[TOKENIZER.end_id], [*row[:-1], TOKENIZER.step_id], [*TOKENIZER.encode("(")]]
  other = reader.encode(Completion(("1+1=3",), "7"))
  lost, right = reader.judge(hidden, [row, other, *wrong_form])
  assert not any(map(any, right)) and not any(lost[0] + lost[1])
  assert all(one[-1] for one in lost[2:])


def test_a_missing_package_is_one_sentence_and_no_matter_to_what_needs_it_not(monkeypatch):
  monkeypatch.setitem(sys.modules, "reasoning_gym", None)
  problem = GCD.parse("gcd 760 368")
  assert GCD.verify(problem, "8").right
  with pytest.raises(UserError, match=r"pip install 'jaxzero\[gym\]'"):
    GCD.problem("train", 0, 0)
