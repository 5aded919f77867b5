"""The verifier of answers inside `jax.jit` decides exactly as `Countdown.verify` does."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.tasks import countdown_device
from jaxzero.tasks.base import TaskConfig
from jaxzero.tasks.expression import ALPHABET, LIMIT
from jaxzero.tokenizers import Tokenizer

TASK = tasks.make(TaskConfig(numbers=4, max_number=9))
TOKENIZER = Tokenizer.train(["2 4 5 6 = 32", "6*5=30"])
DEVICE = jax.jit(countdown_device.answer_verifier(TOKENIZER))
WIDTH, BATCH = 26, 32
PROBLEMS = [
  *TASK.problems("train", 0, 40),
  *map(
    TASK.parse,
    ["2 2 = 4", "1 10 12 = 22", "1 2 3 4 5 6 = 21", "9999 9999 9999 9999 = 1", "7 7 = 1"],
  ),
]


def device_rights(problem, answers, width=WIDTH):
  """Verdicts for lists of token ids, in batches of one shape."""
  rights = []
  for rows in (answers[i : i + BATCH] for i in range(0, len(answers), BATCH)):
    tokens = np.full((BATCH, width), TOKENIZER.pad_id, np.int32)
    length = np.zeros(BATCH, np.int32)
    for i, row in enumerate(rows):
      tokens[i, : len(row)] = row
      length[i] = len(row)
    arrays = np.tile(TASK.problem_array(problem), (BATCH, 1))
    rights += np.asarray(DEVICE(arrays, tokens, length))[: len(rows)].tolist()
  return rights


def host_rights(problem, answers):
  return [TASK.verify(problem, TOKENIZER.decode(row, controls=True)).right for row in answers]


def check(problem, answers):
  answers = [row for row in answers if len(row) <= WIDTH]
  device, host = device_rights(problem, answers), host_rights(problem, answers)
  for got, want, row in zip(device, host, answers, strict=True):
    assert got == want, (problem.id, TOKENIZER.render(row))
  return device


def test_every_worked_answer_is_right():
  for problem in PROBLEMS:
    if TASK.solve(problem) is not None:
      answers = [TOKENIZER.encode(TASK.solve(problem, seed).answer) for seed in range(4)]
      assert all(check(problem, answers))


@pytest.mark.parametrize("prompt", ["2 3 = 6", "3 32 = 35", "2 2 = 1", "3 3 3 = 3"])
def test_agrees_on_every_short_string(prompt):
  problem = TASK.parse(prompt)
  chars = "023+-*/() "
  answers = ["".join(c) for n in range(6) for c in itertools.product(chars, repeat=n)]
  codes = np.full((len(answers), 5), countdown_device.INVALID, np.int32)
  for i, answer in enumerate(answers):
    codes[i, : len(answer)] = [ALPHABET.index(char) for char in answer]
  arrays = np.tile(TASK.problem_array(problem), (len(answers), 1))
  length = np.asarray([len(answer) for answer in answers], np.int32)
  device = np.asarray(jax.jit(countdown_device.verify_codes)(arrays, codes, length))
  wrong = [a for a, got in zip(answers, device, strict=True) if got != _right(problem, a)]
  assert not wrong


def _right(problem, answer):
  return TASK.verify(problem, answer).right


@st.composite
def problem_and_answers(draw):
  """A problem with right answers, right answers with a few characters changed, and noise."""
  problem = draw(st.sampled_from(PROBLEMS))
  seeds = draw(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
  worked = [c.answer for seed in seeds if (c := TASK.solve(problem, seed)) is not None]
  char = st.sampled_from(ALPHABET)
  numbers = problem.id.split("=")[0].split()
  word = st.sampled_from([*numbers, *"+-*/()+-*/ "])
  answers = list(worked) + draw(st.lists(st.lists(word, max_size=15).map("".join), max_size=8))
  for text in worked:
    for _ in range(3):
      at = draw(st.integers(0, len(text)))
      cut = draw(st.integers(0, 2))
      text = text[:at] + draw(st.text(char, max_size=2)) + text[at + cut :]
      answers.append(text)
    answers.append(f"({text})")
  rows = [TOKENIZER.encode(answer) for answer in answers]
  token = st.integers(-3, TOKENIZER.vocab_size + 3)
  for row in rows[: len(worked)]:
    at = draw(st.integers(0, len(row)))
    rows.append([*row[:at], draw(token), *row[at:]])
  rows += draw(st.lists(st.lists(token, max_size=WIDTH), max_size=4))
  return problem, rows


@settings(max_examples=150, deadline=None)
@given(problem_and_answers())
def test_agrees_on_right_mutated_and_random_answers(case):
  check(*case)


def test_numbers_beyond_int32_are_refused_alike():
  problem = TASK.parse("9999 9999 9999 9999 = 1")
  answers = [
    "9999*9999*9999/9999",
    "9999*9999*9999*9999",
    "9999*9999/(9999*9999)",
    "9999*9999-9999*9999",
    "99990*9999/9999/9999",
    "9999*(9999*(9999-9999))",
    "9" * 26,
    "9999/9999+(9999-9999)",
  ]
  assert check(problem, [TOKENIZER.encode(answer) for answer in answers]).count(True) == 2
  largest = TASK.parse("331 1386 4681 4681 = 458766")
  assert LIMIT == 1386 * 4681 * 331 + 1
  assert check(largest, [TOKENIZER.encode("1386*4681*331/4681")]) == [True]
  beyond = TASK.parse("128 4096 4096 4096 = 524288")
  assert LIMIT + 1 == 4096 * 4096 * 128
  answers = ["4096*4096*128/4096", "4096*4096/4096*128"]
  assert check(beyond, [TOKENIZER.encode(answer) for answer in answers]) == [False, True]
  wraps_to_zero = TASK.parse("5 4096 4096 4096 4096 = 5")
  assert check(wraps_to_zero, [TOKENIZER.encode("4096*4096*4096/4096+5")]) == [False]


def test_byte_spelled_digits_are_digits_and_controls_are_not():
  problem = TASK.parse("2 2 = 4")
  byte_two = next(
    i for i in range(TOKENIZER.vocab_size) if TOKENIZER.decode([i]) == "2" and i != plain("2")
  )
  rows = [
    [byte_two, plain("+"), plain("2")],
    [plain("2"), plain("+"), TOKENIZER.step_id, plain("2")],
    [plain("2"), plain("+"), plain("2"), TOKENIZER.pad_id],
    [],
  ]
  assert check(problem, rows) == [True, False, False, False]


def plain(char):
  (token,) = TOKENIZER.encode(char)
  return token


def test_only_the_first_length_tokens_count():
  problem = TASK.parse("2 2 = 4")
  row = TOKENIZER.encode("2+2-2")
  arrays = np.tile(TASK.problem_array(problem), (6, 1))
  tokens = np.tile(np.asarray(row, np.int32), (6, 1))
  got = DEVICE(arrays, tokens, jnp.arange(6))
  assert got.tolist() == [False, False, False, True, False, False]
  assert not DEVICE(arrays[:1], tokens[:1], jnp.asarray([9])).any()
  assert DEVICE(arrays, tokens[:, :0], jnp.zeros(6, jnp.int32)).tolist() == [False] * 6


def test_a_tokenizer_that_merges_answer_characters_is_refused():
  class Merging:
    vocab_size = 2

    def decode(self, ids, controls=False):
      return ["6", "6*"][ids[0]]

  with pytest.raises(UserError, match="one token for each character"):
    TASK.device_verifier(Merging())
  with pytest.raises(UserError, match="1001"):
    countdown_device.verify_codes(
      jnp.zeros((1, 7), jnp.int32), jnp.zeros((1, 1001), jnp.int32), jnp.ones(1, jnp.int32)
    )


def test_problem_array_pads_to_six_numbers():
  assert TASK.problem_array(TASK.parse("6 2 4 5 = 32")).tolist() == [2, 4, 5, 6, 0, 0, 32]
  assert TASK.problem_array(TASK.parse("6 2 = 12")).dtype == np.int32
