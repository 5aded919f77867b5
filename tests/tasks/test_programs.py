"""Programs against oracles: a reference interpreter, and all programs for what can be solved."""

import itertools
import time

import pytest
from automata import Reader, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.tasks import program_language as language
from jaxzero.tasks.base import SPLITS, Completion, TaskConfig
from jaxzero.tasks.programs import canonical
from jaxzero.tasks.programs_device import ALPHABET, SYMBOLS
from jaxzero.tasks.streams import split_of
from jaxzero.tasks.transcript import encode_completion
from jaxzero.tokenizers import Tokenizer

TASK = tasks.make(TaskConfig(name="programs", numbers=2, max_number=9, max_target=99))
TOKENIZER = Tokenizer.train(["(2 5 1)=8"], symbols=TASK.symbols)
END_THINK = TOKENIZER.end_think_id
PROMPTS = ["(2 5 1)=(2 5 1)", "()=0 (3)=1", "(1 2 3)=6 (4 5)=9", "(-3 4 -2)=(4) (1 -9)=(1)"]
PROMPTS += ["(1 2)=(2) (3 4)=4", "(9 9 9)=(81 81 81)"]
PROBLEMS = [*TASK.problems("train", 0, 12), *map(TASK.parse, PROMPTS)]
SOLVABLE = [problem for problem in PROBLEMS if TASK.solvable(problem, "")]


@pytest.fixture(scope="module")
def reader(quick_compiles):
  return Reader(TASK, TOKENIZER)


def interpret(program, value):
  """The value of a program's characters after `x`, by another road: a stack."""
  stack = [list(value)]
  for char in program:
    if char.isdigit():
      stack.append(int(char))
      continue
    n = stack.pop() if char in "+-*TDF" else None
    (a,) = stack
    if char in "+-*":
      ops = {"+": lambda b, n=n: b + n, "-": lambda b, n=n: b - n, "*": lambda b, n=n: b * n}
      new = list(map(ops[char], a)) if isinstance(a, list) else ops[char](a)
    elif not isinstance(a, list) or (char == "M" and not a):
      return None
    else:
      new = {
        "S": lambda a=a: sum(a), "M": lambda a=a: sorted(a)[-1], "L": lambda a=a: len(a),
        "R": lambda a=a: list(reversed(a)), "O": lambda a=a: sorted(a),
        "E": lambda a=a: [b for b in a if not b & 1], "T": lambda a=a, n=n: a[: min(n, len(a))],
        "D": lambda a=a, n=n: a[min(n, len(a)) :], "F": lambda a=a, n=n: [b for b in a if b > n],
      }[char]()  # fmt: skip
    if any(abs(b) > 999 for b in (new if isinstance(new, list) else [new])):
      return None
    stack = [new]
  return tuple(stack[0]) if isinstance(stack[0], list) else stack[0]


PAIRS = [a + b for a, b in itertools.product(["", *language.PIECES], repeat=2)]


def test_programs_are_what_a_stack_machine_makes_of_them():
  inputs = ((3, 1, 8, 1, 0), (), (-7, 250))
  for program in PAIRS:
    values = tuple(interpret(program, value) for value in inputs)
    expected = None if None in values else values
    assert language.run("x" + program, inputs, 2) == expected, program
  assert language.run("xRR", ((1,),), 1) is None


def test_solvable_is_what_some_program_of_all_solves():
  for problem in PROBLEMS:
    assert TASK.solvable(problem, "") == any(TASK.verify(problem, "x" + p).right for p in PAIRS)
  assert 0 < len(SOLVABLE) < len(PROBLEMS)


def test_worked_examples_are_right_short_and_every_prefix_solvable():
  for problem in SOLVABLE:
    completion = TASK.worked_example(problem)
    assert completion == TASK.worked_example(problem)
    assert TASK.verify(problem, completion.answer, completion.steps).right
    for at in range(len(completion.steps)):
      assert not TASK.verify(problem, completion.answer, completion.steps[:at]).right
    row = encode_completion(TOKENIZER, completion)[:-1]
    assert all(TASK.solvable(problem, TOKENIZER.render(row[:i])) for i in range(len(row) + 1))
  with pytest.raises(UserError, match="no program of up to 2 pieces"):
    TASK.worked_example(TASK.parse("(1 2)=77 (2 1)=5"))


def test_prefixes_of_answers_are_solvable_exactly_where_a_right_program_begins_so():
  for problem in SOLVABLE[::4]:
    right = ["x" + program for program in PAIRS if TASK.verify(problem, "x" + program).right]
    head = TOKENIZER.render(encode_completion(TOKENIZER, TASK.worked_example(problem)))
    head = head.partition("</think>")[0] + "</think> "
    for text in {"x" + p for p in PAIRS[::3]} | {text[:i] for text in right for i in range(6)}:
      expected = any(one.startswith(text) for one in right)
      assert TASK.solvable(problem, head + text) == expected, (problem.id, text)


def test_streams_are_pure_and_splits_disjoint():
  for split in SPLITS:
    problems = TASK.problems(split, 1, 10)
    assert problems == TASK.problems(split, 1, 10) and len(set(problems)) == 10
    for problem in problems:
      assert split_of(canonical(problem.id)) == split
      assert TASK.parse(problem.prompt) == problem
  assert canonical("(1)=2 (3)=4") == canonical("(3)=4 (1)=2")


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_automaton_agrees_on_right_mutated_and_random_completions(reader, data):
  problem = data.draw(st.sampled_from(SOLVABLE))
  reader.check(problem, data.draw(rows_of(TASK, TOKENIZER, problem, ALPHABET)))


def test_the_automaton_agrees_on_every_program(reader):
  for problem in SOLVABLE[:2] + SOLVABLE[-3:]:
    completion = TASK.worked_example(problem)
    answers = [Completion(completion.steps, "x" + program) for program in PAIRS[::7]]
    assert reader.check(problem, [reader.encode(completion)]) == [True]
    reader.check(problem, [reader.encode(answer) for answer in answers])


def test_the_automaton_agrees_on_every_step(reader):
  problem = TASK.parse("(12 3 -45)=(3) (8 7)=(7)")
  values = ((12, 3, -45), (8, 7))
  rows = []
  for piece in language.PIECES:
    after = language.after(piece, values)
    for text in ["(3)", "0", "()"] + ([language.render(after[0])] if after else []):
      rows += [reader.encode(Completion((f"{piece}={text}", "R=(3)"), "x"))[:-2]]
  rows += [row for text in ("(12 3 -45", "(12 3)", "(12 3 -45))", "(-0 3)", "(012 3 -45)", "12")
           for row in [reader.encode(Completion((f"R={text}", "R=(3)"), "x"))[:-2]]]  # fmt: skip
  reader.check(problem, rows)
  assert sum(not lost[-3] for lost in reader.judge(problem, rows)[0]) > 10


BAD = "|1 2=3|(1 2)|5=5|(1 2 3 4 5 6)=1|(1)=1 (2)=2 (3)=3 (4)=4|(1)=1000|(1,2)=3|2 5 6 = 32|(1)=(2"


@pytest.mark.parametrize("prompt", [*BAD.split("|"), "(1)=1 " * 50, "(\u0661)=1"])
def test_a_bad_prompt_is_one_sentence(prompt):
  with pytest.raises(UserError, match="a good prompt looks like"):
    TASK.parse(prompt)


@pytest.mark.parametrize("wrong", [{"numbers": 4}, {"max_number": 0}, {"max_target": 1000}])
def test_impossible_settings_are_refused(wrong):
  sizes = {"numbers": 2, **wrong}
  with pytest.raises(UserError, match=next(iter(wrong))):
    tasks.make(TaskConfig(name="programs", **sizes))


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet=st.one_of(st.characters(), st.sampled_from(ALPHABET))), st.text())
def test_any_text_gets_a_verdict_in_time(text, other):
  begin = time.process_time()
  TASK.verify(PROBLEMS[0], text, [other, text])
  TASK.verify(PROBLEMS[0], "x" * 10_000 + text, [text * 1000])
  assert time.process_time() - begin < 0.1
  TASK.solvable(PROBLEMS[0], text)
  TASK.solvable(PROBLEMS[0], other)


def test_symbols_are_tokens_of_their_own_and_leave_other_tokenizers_as_they_were():
  assert all(len(TOKENIZER.encode(symbol)) == 1 for symbol in SYMBOLS)
  texts = ["xSM xSM xSM"] * 9
  assert Tokenizer.train(texts).fingerprint == Tokenizer.train(texts, symbols="12+").fingerprint
  assert Tokenizer.train(texts, symbols="xSM").encode("xSM") != Tokenizer.train(texts).encode("xSM")
