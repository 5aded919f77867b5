"""Countdown against oracles: `fractions` and `ast` for answers, enumeration for prefixes."""

import ast
import itertools
import time
import warnings
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.tasks.base import SPLITS, TaskConfig
from jaxzero.tasks.streams import split_of

TASK = tasks.make(TaskConfig(numbers=4, max_number=9))
THREE = tasks.make(TaskConfig(numbers=3, max_number=9))
OPS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def combine(a, op, b):
  if op == "/" and b == 0:
    return None
  value = {"+": a + b, "-": a - b, "*": a * b, "/": a / b if op == "/" else None}[op]
  return value if value.denominator == 1 and value >= 0 else None


def oracle_value(text):
  """(value, sorted numbers) of a legal expression, else None, by Python's parser and fractions."""
  numbers = []

  def walk(node):
    if isinstance(node, ast.Constant) and type(node.value) is int:
      numbers.append(node.value)
      return Fraction(node.value)
    if isinstance(node, ast.BinOp) and type(node.op) in OPS:
      left, right = walk(node.left), walk(node.right)
      if left is not None and right is not None:
        return combine(left, OPS[type(node.op)], right)
    return None

  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      value = walk(ast.parse(text.strip(" "), mode="eval").body)
  except SyntaxError:
    return None
  return None if value is None else (int(value), tuple(sorted(numbers)))


def oracle_right(problem, text):
  numbers, target = split_prompt(problem)
  return oracle_value(text) == (target, numbers)


def split_prompt(problem):
  left, right = problem.id.split("=")
  return tuple(map(int, left.split())), int(right)


def games(numbers):
  """Every complete game as (step texts, last value), operands in every legal order."""
  if len(numbers) == 1:
    yield (), numbers[0]
  for i, j in itertools.permutations(range(len(numbers)), 2):
    for op in "+-*/":
      value = combine(Fraction(numbers[i]), op, Fraction(numbers[j]))
      if value is not None:
        rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
        for steps, last in games((*rest, int(value))):
          yield (f"{numbers[i]}{op}{numbers[j]}={value}", *steps), last


def expressions(numbers, leaf_parentheses):
  """Every expression over the numbers in this order, each node with and without parentheses."""
  if len(numbers) == 1:
    yield str(numbers[0])
    if leaf_parentheses:
      yield f"({numbers[0]})"
  for cut in range(1, len(numbers)):
    for left in expressions(numbers[:cut], leaf_parentheses):
      for right in expressions(numbers[cut:], leaf_parentheses):
        for op in "+-*/":
          yield f"{left}{op}{right}"
          yield f"({left}{op}{right})"


def prefixes(texts):
  return {text[:i] for text in texts for i in range(len(text) + 1)}


def test_verify_agrees_with_python_on_every_short_string():
  problem = THREE.parse("2 3 = 6")
  for length in range(6):
    for chars in itertools.product("23+-*/()", repeat=length):
      text = "".join(chars)
      assert THREE.verify(problem, text).right == oracle_right(problem, text), text


@pytest.mark.parametrize("prompt", ["1 2 6 = 3", "4 4 8 = 8", "2 3 12 = 6", "1 1 1 = 1"])
def test_verify_agrees_with_python_on_every_expression(prompt):
  numbers = tuple(map(int, prompt.split("=")[0].split()))
  problem = THREE.parse(prompt)
  for order in set(itertools.permutations(numbers)):
    for text in expressions(order, leaf_parentheses=True):
      assert THREE.verify(problem, text).right == oracle_right(problem, text), text


def test_solve_finds_a_solution_exactly_where_one_exists():
  for numbers in itertools.combinations_with_replacement(range(1, 8), 3):
    reachable = {last for _, last in games(numbers)}
    for target in range(1, 60):
      problem = THREE.parse(f"{' '.join(map(str, numbers))} = {target}")
      completion = THREE.solve(problem)
      assert (completion is not None) == (target in reachable), problem.id
      assert THREE.solvable(problem, "") == (target in reachable), problem.id


@pytest.mark.parametrize("numbers", [2, 3, 4, 5])
def test_worked_examples_are_right_step_by_step(numbers):
  task = tasks.make(TaskConfig(numbers=numbers))
  for problem in task.problems("train", 1, 40):
    for seed in range(3):
      completion = task.worked_example(problem, seed)
      assert completion == task.worked_example(problem, seed)
      assert task.verify(problem, completion.answer).right
      assert oracle_right(problem, completion.answer)
      left, target = split_prompt(problem)
      left = list(left)
      for step in completion.steps:
        expression, result = step.split("=")
        value, (b, a) = oracle_value(expression)
        assert value == int(result) and expression.startswith(str(a))
        left.remove(a)
        left.remove(b)
        left.append(value)
      assert left == [target]
      text = f"{' ; '.join(completion.steps)} </think> {completion.answer}"
      assert all(task.solvable(problem, text[:i]) for i in whole_tags(text))


def whole_tags(text):
  """The lengths of prefixes that do not cut `</think>`, which is one token."""
  tag = text.index("</think>")
  return [i for i in range(len(text) + 1) if not tag < i < tag + len("</think>")]


def test_worked_examples_differ_by_seed():
  problem = TASK.parse("2 4 5 6 = 32")
  assert len({TASK.worked_example(problem, seed) for seed in range(30)}) > 5


def test_solvable_agrees_with_every_game_on_every_prefix_of_steps():
  for problem in THREE.problems("validation", 3, 12):
    numbers, target = split_prompt(problem)
    every = [(" ; ".join(steps), last) for steps, last in games(numbers)]
    good = prefixes(text for text, last in every if last == target)
    for prefix in prefixes(text for text, _ in every):
      assert THREE.solvable(problem, prefix) == (prefix in good), (problem.id, prefix)
    for prefix in list(good):
      assert not THREE.solvable(problem, prefix + "?")


def test_solvable_agrees_with_every_expression_on_every_prefix_of_answers():
  for problem in [*THREE.problems("test", 5, 5), THREE.parse("1 10 12 = 3")]:
    numbers, _ = split_prompt(problem)
    orders = set(itertools.permutations(numbers))
    right = {
      text
      for order in orders
      for text in expressions(order, leaf_parentheses=True)
      if oracle_right(problem, text)
    }
    good = prefixes(right)
    asked = prefixes(t for order in orders for t in expressions(order, leaf_parentheses=False))
    thinking = " ; ".join(THREE.worked_example(problem).steps)
    for prefix in asked:
      got = THREE.solvable(problem, f"{thinking} </think> {prefix}")
      assert got == (prefix in good), (problem.id, prefix)


def test_solvable_rejects_false_or_unfinished_thinking():
  problem = TASK.parse("2 4 5 6 = 32")
  assert TASK.solvable(problem, "6*5=30;4-2=2;30+2=32</think>( 6 * 5)+(4 -")
  assert TASK.solvable(problem, "6*5=30 ")
  for prefix in [
    "6*5=31",
    "6*5=30 ; 5",
    "6*5=3 ",
    "6*5=30 ; 4-2=2 </think>",
    "6*5=30 ; 4-2=2 ; 30+2=32 ;",
    "6*5=30 ; 4-2=2 ; 30+2=32 </think> 6*5+4-2-",
    "6*5=30 ; 4-2=2 ; 30+2=32 </think> 6*5+4-2 </think>",
    "6*5=30 ; ; 4-2=2",
    "</think> 6*5+(4-2)",
    "06",
    "\x00",
    "(" * 10_000,
    "6*5=30 ; 4-2=2 ; 30+2=32 </think> " + "(" * 2000,
  ]:
    assert not TASK.solvable(problem, prefix), prefix


def test_problem_is_a_pure_function_in_its_split():
  fresh = tasks.make(TaskConfig(numbers=4, max_number=9))
  for split in SPLITS:
    for index in (7, 0, 3):
      problem = TASK.problem(split, 11, index)
      assert problem == fresh.problem(split, 11, index)
      assert problem.prompt == problem.id == TASK.parse(problem.prompt).id
      assert split_of(problem.id) == split
      assert TASK.solvable(problem, "")
  assert TASK.problems("train", 0, 30) == fresh.problems("train", 0, 50)[:30]


def test_splits_are_disjoint_and_of_the_promised_sizes():
  ids = {split: {p.id for p in TASK.problems(split, 0, 500)} for split in SPLITS}
  assert all(len(found) == 500 for found in ids.values())
  assert not ids["train"] & ids["test"] and not ids["train"] & ids["validation"]
  assert not ids["validation"] & ids["test"]
  shares = [split_of(f"1 2 3 4 = {i}") for i in range(5000)]
  assert shares.count("test") == pytest.approx(500, abs=100)
  assert shares.count("validation") == pytest.approx(500, abs=100)


def test_impossible_requests_are_refused_in_one_sentence():
  with pytest.raises(UserError, match="distinct problems"):
    tasks.make(TaskConfig(numbers=2)).problems("test", 0, 500)
  with pytest.raises(UserError, match="train, validation, test"):
    TASK.problem("training", 0, 0)
  with pytest.raises(UserError, match="negative"):
    TASK.problem("train", -1, 0)
  with pytest.raises(UserError, match="no solution"):
    TASK.worked_example(TASK.parse("1 1 1 1 = 99"))
  with pytest.raises(UserError, match="the known ones are: arithmetic, countdown"):
    tasks.make(TaskConfig(name="chess"))
  for bad in [
    dict(numbers=1),
    dict(numbers=7),
    dict(max_number=0),
    dict(max_number=10_000),
    dict(numbers=6, max_number=36),
    dict(max_target=0),
    dict(worked_examples=-1),
  ]:
    with pytest.raises(UserError, match=next(iter(bad))):
      tasks.make(TaskConfig(**bad))


def test_parse_forgives_spacing_and_order_only():
  assert TASK.parse("  6 2 4   5=32 ").id == "2 4 5 6 = 32"
  assert TASK.parse("02 4 = 8").prompt == "2 4 = 8"
  for bad, reason in [
    ("", "good prompt"),
    ("2 4 5 6", "not whole numbers"),
    ("2 4 = 5 = 6", "not whole numbers"),
    ("2,4 = 8", "not whole numbers"),
    ("-2 4 = 2", "not whole numbers"),
    ("2 4 = 8\n", "not whole numbers"),
    ("２ 4 = 8", "not whole numbers"),
    ("٢ 4 = 8", "not whole numbers"),
    ("2 = 2", "1 numbers"),
    ("1 2 3 4 5 6 7 = 8", "7 numbers"),
    ("0 4 = 4", "number 0"),
    ("10000 4 = 4", "number 10000"),
    ("2 4 = 0", "target 0"),
    ("2 4 = 1000000", "target 1000000"),
    ("9" * 10**6, "1000000 characters"),
    ("2 4 = 8; import os", "not whole numbers"),
  ]:
    with pytest.raises(UserError, match=reason) as caught:
      TASK.parse(bad)
    assert "2 4 5 6 = 32" in str(caught.value) and "\n" not in str(caught.value)


HOSTILE = [
  "",
  " ",
  "()",
  "9**9**9**9",
  "6**5",
  "6//5",
  "1e999",
  "0x20",
  "inf",
  "nan",
  "None",
  "True",
  "32",
  "6*5+4-2=32",
  "6*5+4-2 # 32",
  "6*5+4-2;",
  "6*5+4-2\n",
  "\t6*5+4-2",
  "6*5+4-2\x00",
  "\x006*5+4-2",
  "6*5+4-2 6*5+4-2 6*5+4-2",
  "6*5+4-2, 6*5+4-2",
  "(6*5+4-2,)",
  "-2+6*5+4",
  "+6*5+4-2",
  "6*5+4--2",
  "6*5-(-2)",
  "06*5+4-2",
  "006*5+4-2",
  "6_*5+4-2",
  "6*5+4_2",
  "٦*5+4-2",
  "６*5+4-2",
  "6×5+4−2",
  "6*5\u00a0+4-2",
  "6*5+4-2\ufeff",
  "6.0*5+4-2",
  "6*5+42",
  "6*5+4 2",
  "6 5*+4-2",
  "6(5)+4-2",
  "(6)(5)+4-2",
  "6*5+4-2-(2-2)",
  "6*5+(4-2)*(6-5)",
  "5/(4-4)",
  "6/4*2",
  "(6*5+4-2",
  "6*5+4-2)",
  ")6*5+4-2(",
  "\ud800",
  "[6*5+4-2]",
  "lambda: 6*5+4-2",
  "eval('6*5+4-2')",
  "(" * 10**7,
  "(" * 400 + "6*5+4-2" + ")" * 399,
  "9" * 10**7,
  "6*" * 5 * 10**6,
  " " * 10**7 + "6*5+4-2",
  "6*5+4-2" + " " * 10**7,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_junk_is_wrong_and_cheap(text):
  problem = TASK.parse("2 4 5 6 = 32")
  times = []
  for _ in range(3):
    start = time.perf_counter()
    verdict = TASK.verify(problem, text)
    times.append(time.perf_counter() - start)
  assert not verdict.right
  assert 0 < len(verdict.reason) < 60
  assert min(times) < 0.005


def test_no_answer_is_executed(tmp_path):
  mark = tmp_path / "executed"
  problem = TASK.parse("2 4 5 6 = 32")
  for payload in [
    f"__import__('pathlib').Path({str(mark)!r}).touch()",
    f"(6*5+4-2) + (open({str(mark)!r}, 'w') and 0)",
    f"[c for c in ().__class__.__base__.__subclasses__()] or open({str(mark)!r}, 'w')",
  ]:
    assert not TASK.verify(problem, payload).right
    assert not TASK.solvable(problem, payload)
    with pytest.raises(UserError):
      TASK.parse(payload)
  assert not mark.exists()


def test_spaces_and_redundant_parentheses_are_right():
  problem = TASK.parse("2 4 5 6 = 32")
  for text in [
    "6*5+(4-2)",
    "  6 * 5+4 - 2 ",
    "((6)*(5))+((4)-2)",
    "(" * 400 + "6*5+4-2" + ")" * 400,
  ]:
    assert TASK.verify(problem, text).right, text


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.text("2456+-*/() "), st.text("0123456789_.eE+-*/()[]{},:;=\n\x00")))
def test_verify_solvable_and_parse_never_raise_anything_else(text):
  problem = TASK.parse("2 4 5 6 = 32")
  if TASK.verify(problem, text).right:
    assert oracle_right(problem, text)
  TASK.solvable(problem, text)
  TASK.solvable(problem, "6*5=30 ; 4-2=2 ; 30+2=32 </think>" + text)
  try:
    parsed = TASK.parse(text)
  except UserError:
    return
  assert TASK.parse(parsed.prompt) == parsed
