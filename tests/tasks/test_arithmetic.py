"""Arithmetic against oracles: Python's parser for results, all orders of steps for prefixes."""

import ast
import dataclasses
import itertools
import time

import pytest
from automata import Reader, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.tasks.arithmetic import canonical
from jaxzero.tasks.arithmetic_device import LIMIT
from jaxzero.tasks.base import SPLITS, Completion, TaskConfig
from jaxzero.tasks.streams import split_of
from jaxzero.tasks.transcript import encode_completion, grade
from jaxzero.tokenizers import Tokenizer

CONFIG = TaskConfig(name="arithmetic", numbers=4, max_number=99, max_target=9999)
TASK = tasks.make(CONFIG)
TOKENIZER = Tokenizer.train(["12+47*3-58", "47*3=141"])
STEP, END_THINK = TOKENIZER.step_id, TOKENIZER.end_think_id
PROMPTS = ["2*3*4+2*3", "9+2*3+2*3*4", "5-5", "0*7+0", "1+2+3+4+5+6", "9999*9999*21", "8-3+1*1-1"]
PROBLEMS = [*TASK.problems("train", 0, 20), *map(TASK.parse, PROMPTS)]


@pytest.fixture(scope="module")
def reader(quick_compiles):
  return Reader(TASK, TOKENIZER)


def oracle_value(text):
  """By Python's own parser, on our own problems alone."""

  def walk(node):
    if isinstance(node, ast.Constant):
      return node.value
    a, b = walk(node.left), walk(node.right)
    return {ast.Add: a + b, ast.Sub: a - b, ast.Mult: a * b}[type(node.op)]

  return walk(ast.parse(text, mode="eval").body)


def all_workings(problem):
  """Every sequence of legal steps, each step found by trying all numbers that may stand in it."""

  def walk(text):
    if not set(text) & set("+-*"):
      yield ()
      return
    terms = text.replace("-", "+-").split("+")
    moves = {}
    for i, term in enumerate(terms):
      sign, factors = term[: term.startswith("-")], term.lstrip("-").split("*")
      if len(factors) > 1:
        product = str(int(factors[0]) * int(factors[1]))
        new = [*terms[:i], sign + "*".join([product, *factors[2:]]), *terms[i + 1 :]]
        moves.setdefault(f"{factors[0]}*{factors[1]}={product}", new)
      # A product behind a finished factor cannot begin before it: 2*3*4 has one way.
    if len(terms) > 1 and "*" not in terms[0] + terms[1]:
      total = int(terms[0]) + int(terms[1])
      op = "" if terms[1].startswith("-") else "+"
      moves.setdefault(f"{terms[0]}{op}{terms[1]}={total}", [str(total), *terms[2:]])
    for step, new in moves.items():
      for rest in walk("+".join(new).replace("+-", "-")):
        yield (step, *rest)

  return set(walk(problem.prompt))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.id)
def test_right_are_exactly_the_orders_of_steps_that_an_oracle_finds(problem):
  assert problem.key == str(oracle_value(problem.prompt))
  workings = all_workings(problem)
  for steps in workings:
    assert TASK.verify(problem, problem.key, steps).right
    assert not TASK.verify(problem, problem.key, steps[:-1]).right
    for i, wrong in itertools.product(range(len(steps)), ("0=0", "", steps[0] + "0")):
      assert not TASK.verify(problem, problem.key, [*steps[:i], wrong, *steps[i + 1 :]]).right
  worked = {TASK.worked_example(problem, seed).steps for seed in range(60)}
  assert worked <= workings and (len(workings) > 4 or worked == workings)


def test_streams_are_pure_and_splits_disjoint_up_to_order():
  for split in SPLITS:
    problems = TASK.problems(split, 1, 30)
    assert problems == TASK.problems(split, 1, 30) and len(set(problems)) == 30
    for problem in problems:
      assert split_of(canonical(problem.id)) == split
      assert TASK.parse(problem.prompt) == problem and TASK.parse(problem.id).key == problem.key
      completion = TASK.worked_example(problem)
      assert TASK.verify(problem, completion.answer, completion.steps).right
      for step in completion.steps:
        assert 0 <= int(step.split("=")[1]) <= CONFIG.max_target
  assert canonical("2*3+4-5") == canonical("4+3*2-5") != canonical("2*3-4+5")


def test_every_prefix_of_a_worked_example_is_solvable_and_only_of_right_ones():
  for problem in PROBLEMS[:12]:
    row = encode_completion(TOKENIZER, TASK.worked_example(problem))[:-1]
    assert all(TASK.solvable(problem, TOKENIZER.render(row[:i])) for i in range(len(row) + 1))
    workings = [";".join(steps) for steps in all_workings(problem)]
    text = TOKENIZER.render(row[: row.index(END_THINK)])
    for i in range(len(text)):
      for char in "7=*":
        changed = text[:i] + char
        right = any(working.startswith(changed.replace(" ", "")) for working in workings)
        assert TASK.solvable(problem, changed) == right


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_automaton_agrees_on_right_mutated_and_random_completions(reader, data):
  problem = data.draw(st.sampled_from(PROBLEMS))
  reader.check(problem, data.draw(rows_of(TASK, TOKENIZER, problem, "0123456789+-*=")))


def test_the_automaton_agrees_on_every_working_and_on_near_misses(reader):
  for problem in PROBLEMS:
    workings = sorted(all_workings(problem))[:8]
    right = [reader.encode(Completion(steps, problem.key)) for steps in workings]
    assert all(reader.check(problem, right))
    lost, _ = reader.judge(problem, right)
    assert not any(map(any, lost))
    wrong = [Completion(steps[1:], problem.key) for steps in workings]
    wrong += [Completion(steps[::-1], problem.key) for steps in workings if len(steps) > 1]
    wrong += [Completion(steps, problem.key + "0") for steps in workings]
    wrong += [Completion(steps, "0" + problem.key) for steps in workings]
    reader.check(problem, [reader.encode(completion) for completion in wrong])


def test_without_a_key_nothing_is_right_and_only_the_form_is_judged(reader):
  problem = TASK.parse("12+47*3-58")
  hidden = dataclasses.replace(problem, key=None)
  row = reader.encode(TASK.worked_example(problem))
  assert not TASK.problem_array(hidden).any()
  assert not grade(TASK, TOKENIZER, hidden, row).right
  other = reader.encode(TASK.worked_example(TASK.parse("7*7+1")))
  form = [[*TOKENIZER.encode(text), STEP, 5] for text in ("12", "1+1=", "1*=2", "1+2+3", "01+1=2")]
  lost, right = reader.judge(hidden, [row, other, *form])
  assert not any(map(any, right)) and not any(lost[0] + lost[1])
  assert all(one[-1] for one in lost[2:])


BAD = "|12|1+|1/2|2 5 6 = 32|1-2|3-2*2|9999*9999*9999|1+10000|1+1+1+1+1+1+1|١+1|1+1;|(1+2)*3"


@pytest.mark.parametrize("prompt", [*BAD.split("|"), "1+" * 200 + "1"])
def test_a_bad_prompt_is_one_sentence(prompt):
  with pytest.raises(UserError, match=r"a good prompt looks like"):
    TASK.parse(prompt)


@pytest.mark.parametrize(
  "wrong", [{"numbers": 1}, {"numbers": 7}, {"max_number": 0}, {"max_target": LIMIT + 1}]
)
def test_impossible_settings_are_refused(wrong):
  with pytest.raises(UserError, match=next(iter(wrong))):
    tasks.make(TaskConfig(name="arithmetic", **wrong))


@settings(max_examples=60, deadline=None)
@given(st.text(), st.text(alphabet="0123456789+-*=;< "))
def test_any_text_gets_a_verdict_in_time(text, other):
  begin = time.process_time()
  assert not TASK.verify(PROBLEMS[0], text, [other, text]).right
  assert not TASK.verify(PROBLEMS[0], other * 1000, [other * 1000] * 9).right
  TASK.solvable(PROBLEMS[0], text)
  TASK.solvable(PROBLEMS[0], other * 100)
  assert time.process_time() - begin < 0.1
