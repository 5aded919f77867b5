"""The verifier of steps inside `jax.jit` decides exactly as `Countdown.verify` does with steps."""

import itertools

import jax
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.tasks import countdown_solver, countdown_steps
from jaxzero.tasks.base import Completion, TaskConfig
from jaxzero.tasks.expression import LIMIT
from jaxzero.tasks.transcript import encode_completion, grade, parse_completion
from jaxzero.tokenizers import Tokenizer

TASK = tasks.make(TaskConfig(numbers=4, max_number=9))
TOKENIZER = Tokenizer.train(["2 4 5 6 = 32", "6*5=30"])
STEPS = jax.jit(countdown_steps.steps_verifier(TOKENIZER))
WHOLE = jax.jit(TASK.device_verifier(TOKENIZER))
WIDTH, BATCH = 40, 32
PROBLEMS = [
  *TASK.problems("train", 0, 40),
  *map(
    TASK.parse, ["2 2 = 4", "5 5 7 = 7", "1 2 3 4 5 6 = 21", "9999 9999 9999 = 1", "1 1 1 1 = 1"]
  ),
]


def tokens_of(steps):
  row = encode_completion(TOKENIZER, Completion(steps=tuple(steps), answer="1"))
  return row[: row.index(TOKENIZER.end_think_id)]


def device_rights(problem, rows):
  """Verdicts on thinking tokens, in batches of one shape."""
  rights = []
  for part in (rows[i : i + BATCH] for i in range(0, len(rows), BATCH)):
    # What lies behind the thinking must not matter.
    tokens = np.full((BATCH, WIDTH), TOKENIZER.encode("7")[0], np.int32)
    length = np.zeros(BATCH, np.int32)
    for i, row in enumerate(part):
      tokens[i, : len(row)], length[i] = row, len(row)
    arrays = np.tile(TASK.problem_array(problem), (BATCH, 1))
    rights += np.asarray(STEPS(arrays, tokens, length))[: len(part)].tolist()
  return rights


def check(problem, rows):
  """The device's verdicts, after comparing them with the host's."""
  rows = [row for row in rows if len(row) <= WIDTH]
  numbers, target = (int(x) for x in problem.id.split("=")[0].split()), problem.id.split("=")[1]
  numbers, target = tuple(sorted(numbers)), int(target)
  rights = device_rights(problem, rows)
  for got, row in zip(rights, rows, strict=True):
    steps = parse_completion(TOKENIZER, row)[0].steps
    assert got == (countdown_solver.after_steps(numbers, steps) == (target,)), (problem.id, steps)
  return rights


def test_every_worked_example_is_right_and_its_shortened_steps_are_not():
  for problem in PROBLEMS:
    for seed in range(3):
      if (completion := TASK.solve(problem, seed)) is not None:
        rows = [tokens_of(completion.steps[:n]) for n in range(len(completion.steps) + 1)]
        assert check(problem, rows) == [False] * len(completion.steps) + [True]


def test_agrees_on_every_step_of_two_small_numbers():
  problem = TASK.parse("2 3 = 6")
  texts = {
    f"{a}{op}{b}={c}"
    for a, b, c in itertools.product(["0", "2", "3", "6", "02", ""], repeat=3)
    for op in ["+", "-", "*", "/", "**", "=", ""]
  }
  rights = check(problem, [tokens_of([text]) for text in sorted(texts)])
  assert [text for text, right in zip(sorted(texts), rights, strict=True) if right] == [
    "2*3=6",
    "3*2=6",
  ]


@st.composite
def problem_and_thinking(draw):
  """Worked steps with a few characters, tokens or whole steps changed, and noise."""
  problem = draw(st.sampled_from(PROBLEMS))
  seeds = draw(st.lists(st.integers(0, 1000), min_size=3, max_size=3))
  worked = [list(c.steps) for seed in seeds if (c := TASK.solve(problem, seed)) is not None]
  rows = [tokens_of(steps) for steps in worked]
  for steps in worked:
    rows.append(tokens_of(draw(st.permutations(steps))))
    rows.append(tokens_of([*steps, draw(st.sampled_from(steps))]))
    at = draw(st.integers(0, len(steps) - 1))
    left, _, result = steps[at].partition("=")
    wrong = f"{left}={int(result) + draw(st.integers(-1, 1))}"
    rows.append(tokens_of([*steps[:at], wrong, *steps[at + 1 :]]))
  token = st.one_of(
    st.integers(-3, TOKENIZER.vocab_size + 3),
    st.sampled_from([*TOKENIZER.encode(countdown_steps.ALPHABET), TOKENIZER.step_id]),
  )
  for row in rows[:6]:
    at, cut = draw(st.integers(0, len(row))), draw(st.integers(0, 2))
    rows.append([*row[:at], *draw(st.lists(token, max_size=2)), *row[at + cut :]])
  rows += draw(st.lists(st.lists(token, max_size=WIDTH), max_size=4))
  marks = {TOKENIZER.end_think_id, TOKENIZER.end_id}
  return problem, [row for row in rows if not marks & set(row)]


@settings(max_examples=150, deadline=None)
@given(problem_and_thinking())
def test_agrees_on_worked_mutated_and_random_steps(case):
  check(*case)


def test_results_beyond_int32_are_refused_alike():
  assert 99980001 < LIMIT < 99980001 * 9999
  problem = TASK.parse("9999 9999 9999 = 1")
  right = ["9999*9999=99980001", "99980001/9999=9999"]
  rows = [
    right[:1],
    ["9999*9999=99980001", "99980001*9999=999700029999"],
    ["9999*9999=99980001", f"99980001*9999={(99980001 * 9999) % 2**32}"],
    ["9999/9999=1", "1*9999=9999"],
    ["9999-9999=0", "9999/0=1"],
    ["9999-9999=0", "0/9999=0"],
    ["9" * 20 + "+1=1"],
  ]
  assert not any(check(problem, [tokens_of(steps) for steps in rows]))


def test_a_right_answer_behind_wrong_steps_is_wrong_on_host_and_device():
  problem = TASK.parse("2 5 6 = 32")
  cases = [
    (("5*6=30", "2+30=32"), "5*6+2", True),
    (("6*5=30", "30+2=32"), "2+5*6", True),
    (("6*5=31", "31+1=32"), "5*6+2", False),
    (("5*6=30",), "5*6+2", False),
    ((), "5*6+2", False),
    (("5*6=30", "2+30=32"), "5*6-2", False),
  ]
  rows = [encode_completion(TOKENIZER, Completion(steps, answer)) for steps, answer, _ in cases]
  expected = [right for _, _, right in cases]
  assert [grade(TASK, TOKENIZER, problem, row).right for row in rows] == expected
  steps, answers = np.zeros((2, len(rows), WIDTH), np.int32)
  steps_length, answer_length = np.zeros((2, len(rows)), np.int32)
  for i, row in enumerate(rows):
    at = row.index(TOKENIZER.end_think_id)
    steps[i, :at], steps_length[i] = row[:at], at
    answers[i, : len(row) - at - 2], answer_length[i] = row[at + 1 : -1], len(row) - at - 2
  arrays = np.tile(TASK.problem_array(problem), (len(rows), 1))
  assert WHOLE(arrays, steps, steps_length, answers, answer_length).tolist() == expected
