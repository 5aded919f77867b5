"""The automaton inside `jax.jit` decides as `grade` does, and calls a lost game lost in time."""

import functools
from random import Random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.tasks import countdown_solver, expression
from jaxzero.tasks.base import Completion, TaskConfig
from jaxzero.tasks.expression import LIMIT
from jaxzero.tasks.transcript import encode_completion, grade, parse_completion
from jaxzero.tokenizers import Tokenizer

TASK = tasks.make(TaskConfig(numbers=4, max_number=9))
TOKENIZER = Tokenizer.train(["2 4 5 6 = 32", "6*5=30"])
REFEREE = TASK.device_verifier(TOKENIZER)
STEP, END_THINK, END = TOKENIZER.step_id, TOKENIZER.end_think_id, TOKENIZER.end_id
WIDTH, BATCH = 80, 32
CHUNK = 8192
READ = jax.jit(REFEREE.read)
OF_STEPS, OF_ANSWERS = "0123456789+-*/=", expression.ALPHABET
PROMPTS = "2 2 = 4|1 10 12 = 22|1 2 3 4 5 6 = 21|9999 9999 9999 9999 = 1|7 7 = 1|5 5 7 = 7|"
PROMPTS += "1 1 1 1 = 1|1 2 3 4 5 6 = 95"
PROBLEMS = [*TASK.problems("train", 0, 40), *map(TASK.parse, PROMPTS.split("|"))]


@jax.jit
def read_all(arrays, tokens):
  """(lost, right) [T, B] after each of tokens [B, T]."""

  def turn(state, token):
    state = REFEREE.read(state, token)
    return state, (REFEREE.lost(state), REFEREE.right(state))

  return jax.lax.scan(turn, REFEREE.start(arrays), tokens.T)[1]


def judge(problem, rows, width=WIDTH):
  """(lost, right): for every row a list of what is known after each of its tokens."""
  lost, right = [], []
  for part in (rows[i : i + BATCH] for i in range(0, len(rows), BATCH)):
    tokens = np.full((BATCH, width), TOKENIZER.pad_id, np.int32)
    for i, row in enumerate(part):
      tokens[i, : len(row)] = row
    arrays = np.tile(TASK.problem_array(problem), (BATCH, 1))
    got = [np.asarray(x).T.tolist() for x in read_all(arrays, tokens)]
    for i, row in enumerate(part):
      lost.append(got[0][i][: len(row)])
      right.append(got[1][i][: len(row)])
  return lost, right


def check(problem, rows):
  """The final verdicts, after comparing them, and every one before, with the host's."""
  rows = [row for row in rows if 0 < len(row) <= WIDTH]
  for row, lost, right in zip(rows, *judge(problem, rows), strict=True):
    verdict = grade(TASK, TOKENIZER, problem, row).right
    for i in range(len(row)):
      said = problem.id, TOKENIZER.render(row[: i + 1]), row[: i + 1]
      assert right[i] == (verdict and END in row[: i + 1]), said
      assert lost[i] == is_lost(problem, row[: i + 1]), said
    if True in lost and is_readable(row[: lost.index(True) + 1]):
      assert not TASK.solvable(problem, TOKENIZER.render(row[: lost.index(True) + 1]))
  return [grade(TASK, TOKENIZER, problem, row).right for row in rows]


def worked_steps(problem):
  row = encode_completion(TOKENIZER, TASK.worked_example(problem))
  return row[: row.index(END_THINK) + 1]


def check_answers(problem, answers):
  """As `check`, behind worked steps; the problem must have a solution."""
  head = worked_steps(problem)
  return check(problem, [[*head, *TOKENIZER.encode(answer), END] for answer in answers])


def check_steps(problem, thinking):
  """Which steps lead to the target: those after whose end the game is not lost."""
  rows = [encode_completion(TOKENIZER, Completion(steps, ""))[:-1] for steps in thinking]
  check(problem, rows)
  return [not lost[-1] for lost in judge(problem, rows)[0]]


def is_lost(problem, prefix):
  """What the automaton promises to know: steps that have ended, and answers to the last number."""
  numbers, target = facts(problem.id)
  if END in prefix:
    return not grade(TASK, TOKENIZER, problem, prefix).right
  completion, _ = parse_completion(TOKENIZER, prefix)
  if not all(set(step) <= set(OF_STEPS) for step in completion.steps):
    return True
  if END_THINK not in prefix:
    return countdown_solver.after_steps(numbers, completion.steps[:-1]) is None
  if countdown_solver.after_steps(numbers, completion.steps) != (target,):
    return True
  if not set(completion.answer) <= set(OF_ANSWERS):
    return True
  whole = completion.answer.rstrip(expression.DIGITS)
  digits = completion.answer[len(whole) :]
  words, reason = expression.tokenize(whole)
  machine = expression.Machine(numbers)
  if reason or not all(machine.feed(word) for word in words):
    return True
  too_long = len(digits) > 1 and (digits[0] == "0" or int(digits) > LIMIT)
  return bool(digits) and (machine.ready or too_long)


@functools.lru_cache
def facts(problem_id):
  left, right = problem_id.split("=")
  return tuple(sorted(map(int, left.split()))), int(right)


def is_readable(prefix):
  """Whether its rendered text means the same: no stray control, space or semicolon."""
  completion = parse_completion(TOKENIZER, prefix)[0]
  clean = all(step and set(step) <= set(OF_STEPS) for step in completion.steps)
  return clean and set(completion.answer) <= set(OF_ANSWERS) and END not in prefix


def test_worked_examples_are_right_and_never_lost_before_their_end():
  for problem in PROBLEMS:
    if TASK.solve(problem) is not None:
      worked = [TASK.solve(problem, seed) for seed in range(3)]
      lost, right = judge(problem, [encode_completion(TOKENIZER, c) for c in worked])
      assert not any(map(any, lost))
      assert all(r == [False] * (len(r) - 1) + [True] for r in right)
      shorter = [completion.steps[:n] for completion in worked for n in range(6)]
      assert check_steps(problem, shorter) == [
        n >= len(completion.steps) for completion in worked for n in range(6)
      ]


def read(states, tokens):
  """`READ` on any number of rows, by chunks of one shape: states [N, S], tokens [N] or one."""
  tokens = np.broadcast_to(np.asarray(tokens, np.int32), len(states))
  after = np.empty_like(states)
  for at in range(0, len(states), CHUNK):
    rows = len(states[at : at + CHUNK])
    chunk = np.resize(states[at : at + CHUNK], (CHUNK, states.shape[1]))
    after[at : at + CHUNK] = READ(chunk, np.resize(tokens[at : at + CHUNK], CHUNK))[:rows]
  return after


def read_every_text(problem, head, chars, length):
  """Yields (texts, states) of every text of 0..length characters behind the head's tokens."""
  texts, states = [""], np.asarray(REFEREE.start(TASK.problem_array(problem)[None]))
  for token in head:
    states = read(states, token)
  yield texts, states
  tokens = [TOKENIZER.encode(char)[0] for char in chars]
  for _ in range(length):
    states = read(np.repeat(states, len(chars), axis=0), np.tile(tokens, len(texts)))
    texts = [text + char for text in texts for char in chars]
    yield texts, states


@pytest.mark.parametrize("prompt", ["2 3 = 6", "3 32 = 35", "2 2 = 1", "3 3 3 = 3"])
def test_agrees_on_every_short_answer(prompt):
  problem = TASK.parse(prompt)
  head = worked_steps(problem)
  lost, right = set(), set()
  for texts, states in read_every_text(problem, head, "023+-*/() ", 5):
    ended = read(states, END)
    rights = np.asarray(REFEREE.right(ended))
    assert (np.asarray(REFEREE.lost(ended)) == ~rights).all()
    assert rights.tolist() == [TASK.verify(problem, text).right for text in texts]
    lost |= set(np.asarray(texts)[np.asarray(REFEREE.lost(states))].tolist())
    right |= {text for text, is_right in zip(texts, rights, strict=True) if is_right}
  assert not lost & {text[:i] for text in right for i in range(len(text) + 1)}
  assert right or prompt == "3 3 3 = 3"


def test_agrees_on_every_short_step():
  problem = TASK.parse("2 3 = 6")
  numbers, target = facts(problem.id)
  for texts, states in read_every_text(problem, [], "0236+-*/=", 5):
    assert not REFEREE.lost(states).any()  # a step is judged when it ends
    left = [countdown_solver.after_steps(numbers, [text]) for text in texts]
    after = read(states, STEP)
    assert np.asarray(REFEREE.lost(after)).tolist() == [x is None for x in left]
    after = read(states, END_THINK)
    assert np.asarray(REFEREE.lost(after)).tolist() == [x != (target,) for x in left]


@st.composite
def problem_and_rows(draw):
  """A problem with right completions, some with characters, tokens or steps changed, and noise."""
  problem = draw(st.sampled_from(PROBLEMS))
  seeds = draw(st.lists(st.integers(0, 1000), min_size=2, max_size=2))
  worked = [c for seed in seeds if (c := TASK.solve(problem, seed)) is not None]
  rows = [encode_completion(TOKENIZER, completion) for completion in worked]
  word = st.sampled_from([*map(str, facts(problem.id)[0]), *"+-*/()+-*/ "])
  for steps, answer in ((c.steps, c.answer) for c in worked):
    at = draw(st.integers(0, len(steps) - 1))
    left, _, result = steps[at].partition("=")
    wrong = f"{left}={int(result) + draw(st.integers(-1, 1))}"
    new = [
      (draw(st.permutations(steps)), answer),
      ([*steps, draw(st.sampled_from(steps))], answer),
      ([*steps[:at], wrong, *steps[at + 1 :]], answer),
      (steps, "".join(draw(st.lists(word, max_size=15)))),
      (steps, f"({answer})"),
    ]
    rows += [encode_completion(TOKENIZER, Completion(tuple(s), a)) for s, a in new]
  token = st.one_of(
    st.integers(-3, TOKENIZER.vocab_size + 3),
    st.sampled_from([*TOKENIZER.encode(OF_ANSWERS + "="), STEP, END_THINK, END]),
    st.sampled_from(TOKENIZER.encode(OF_ANSWERS)),
  )
  for row in rows[:8]:
    at, cut = draw(st.integers(0, len(row))), draw(st.integers(0, 2))
    rows.append([*row[:at], *draw(st.lists(token, max_size=2)), *row[at + cut :]])
  rows += draw(st.lists(st.lists(token, max_size=WIDTH), max_size=3))
  return problem, rows


@settings(max_examples=75, deadline=None)
@given(problem_and_rows())
def test_agrees_on_right_mutated_and_random_completions_after_every_token(case):
  check(*case)


def nested(numbers, rng):
  """A random expression over the numbers with parentheses and spaces that nothing asked for."""
  if len(numbers) == 1:
    text = str(numbers[0])
  else:
    cut = rng.choice([1, rng.randrange(1, len(numbers))])
    op = rng.choice("+-*/+*")
    text = f"{nested(numbers[:cut], rng)}{op}{nested(numbers[cut:], rng)}"
  text = f"{' ' * (rng.random() < 0.1)}{text}"
  return f"({text})" if rng.random() < 0.5 else text


def test_agrees_on_deeply_nested_answers_of_six_numbers():
  rng, depths = Random(0), set()
  for _ in range(60):
    numbers = [rng.randint(1, 9) for _ in range(6)]
    texts = (nested(rng.sample(numbers, 6), rng) for _ in range(200))
    found = [(text, expression.evaluate(text, tuple(numbers))[0]) for text in texts]
    legal = [(t, value) for t, value in found if value and value < 1000 and len(t) < 30]
    for text, value in legal[:1]:
      problem = TASK.parse(f"{' '.join(map(str, numbers))} = {value}")
      near = [text, text[:-1], text + ")", f"({text})", text.replace("+", "-", 1)]
      assert check_answers(problem, near)[0]
      depths.add(text.count("("))
  problem = PROBLEMS[-1]
  assert all(check_answers(problem, ["1+2*(3+4*(5+6))", "1+(2*((3+((4*(((5)+(6))))))))"]))
  assert not any(check_answers(problem, ["1+2*(3+4*(5+6*(", "1+2*(3+4*(5+6*1))"]))
  assert len(depths) > 4


def test_long_answers_are_right_up_to_the_host_s_limit():
  problem = TASK.parse("2 4 5 6 = 32")
  head = worked_steps(problem)
  deep = "(" * 400 + "6*5+4-2" + ")" * 400
  for answer in [deep, deep + ")", "(" + deep, "6*5+4-2".rjust(1000), "6*5+4-2".rjust(1001)]:
    row = [*head, *TOKENIZER.encode(answer), END]
    ((*_, right),) = judge(problem, [row], width=1050)[1]
    assert (
      right
      == grade(TASK, TOKENIZER, problem, row).right
      == (answer != deep + ")") & (len(answer) <= 1000 and answer != "(" + deep)
    )


def test_numbers_beyond_int32_are_refused_alike():
  problem = TASK.parse("9999 9999 9999 9999 = 1")
  answers = [
    "9999*9999*9999/9999",
    "9999*9999*9999*9999",
    "9999*9999/(9999*9999)",
    "9999*9999-9999*9999",
    "99990*9999/9999/9999",
    "9999*(9999*(9999-9999))",
    "9" * 20,
    "9999/9999+(9999-9999)",
  ]
  assert check_answers(problem, answers).count(True) == 2
  assert LIMIT == 1386 * 4681 * 331 + 1 and LIMIT + 1 == 4096 * 4096 * 128
  largest = TASK.parse("331 1386 4681 4681 = 458766")
  assert check_answers(largest, ["1386*4681*331/4681"]) == [True]
  beyond = TASK.parse("128 4096 4096 4096 = 524288")
  assert check_answers(beyond, ["4096*4096*128/4096", "4096*4096/4096*128"]) == [False, True]
  wraps_to_zero = TASK.parse("5 4096 4096 4096 4096 = 5")
  assert check_answers(wraps_to_zero, ["4096*4096*4096/4096+5"]) == [False]
  problem = TASK.parse("9999 9999 9999 = 1")
  steps = [
    ("9999*9999=99980001",),
    ("9999*9999=99980001", "99980001*9999=999700029999"),
    ("9999*9999=99980001", f"99980001*9999={(99980001 * 9999) % 2**32}"),
    ("9999/9999=1", "1*9999=9999"),
    ("9999-9999=0", "9999/0=1"),
    ("9999-9999=0", "0/9999=0"),
    ("9" * 20 + "+1=1",),
  ]
  assert not any(check_steps(problem, steps))


def test_lost_at_once_at_the_step_s_end_or_at_the_end_of_thinking():
  problem = TASK.parse("2 5 6 = 32")
  for text, index in [
    ("5*6=31;", 6),
    ("5**6=30;", 7),
    ("5*6=030;", 7),
    ("5*7=35;", 6),
    (";", 0),
    ("5*6=30;;", 7),
    ("5*6=30;30-2=28|", 14),
    ("5 *6", 1),
    ("(", 0),
    ("5*6=30$", 6),
    ("5*6=30;30+2=32|=", 15),
    ("5*6=30;30+2=32|;", 15),
    ("5*6=30;30+2=32|5*7+", 18),
    ("5*6=30;30+2=32|5*)", 17),
    ("5*6=30;30+2=32|5/6+", 18),
    ("5*6=30;30+2=32|5/(6)+", 19),
    ("5*6=30;30+2=32|2-5*6$", 20),
    ("5*6=30;30+2=32|5*6+2|", 20),
    ("5*6=30;30+2=32|5*6-2$", 20),
    ("5*6=30;30+2=32|(5*6+2$", 21),
  ]:
    marks = {";": STEP, "|": END_THINK, "$": END}
    row = [marks.get(char) or TOKENIZER.encode(char)[0] for char in text]
    (lost,), _ = judge(problem, [row])
    assert lost.index(True) == index, text
    assert all(lost[index:])


def test_byte_spelled_digits_are_digits_and_controls_are_not():
  problem = TASK.parse("2 2 = 4")
  two, plus = TOKENIZER.encode("2+")
  twos = [i for i in range(TOKENIZER.vocab_size) if TOKENIZER.decode([i]) == "2"]
  (byte_two,) = set(twos) - {two}
  head = worked_steps(problem)
  answers = [
    [byte_two, plus, two],
    [two, plus, STEP, two],
    [two, plus, two, TOKENIZER.pad_id],
    [TOKENIZER.think_id, two, plus, two],
    [],
  ]
  rows = [[*head, *answer, END] for answer in answers]
  rows.append([byte_two, *rows[0][1:]])
  assert check(problem, rows) == [True, False, False, False, False, True]


def test_verdicts_stay_whatever_follows():
  problem = TASK.parse("2 5 6 = 32")
  right = encode_completion(TOKENIZER, TASK.worked_example(problem))
  rng = np.random.default_rng(0)
  tails = [rng.integers(-2, TOKENIZER.vocab_size + 2, WIDTH - len(right)).tolist() for _ in "1234"]
  rows = [[*right, *tail] for tail in [*tails, right, right[-6:]]]
  for lost, is_right in zip(*judge(problem, rows), strict=True):
    assert not any(lost) and all(is_right[len(right) - 1 :])
  rows = [[END, *right], [*right[:-2], END, *right[-2:]], [END_THINK, *right]]
  for lost, is_right in zip(*judge(problem, rows), strict=True):
    assert lost[-1] and not any(is_right)


def test_any_leading_shape_is_read_row_by_row():
  problems = PROBLEMS[:8]
  tokens = np.stack([encode_completion(TOKENIZER, TASK.worked_example(p))[:8] for p in problems])
  arrays = np.stack([TASK.problem_array(problem) for problem in problems])
  rows = np.asarray(REFEREE.start(arrays))
  cube = REFEREE.start(arrays.reshape(2, 2, 2, -1))
  one = REFEREE.start(arrays[3])
  for column in tokens.T:
    rows, one = read(rows, column), READ(one, column[3])
    cube = READ(cube, column.reshape(2, 2, 2))
  assert cube.shape == (2, 2, 2, REFEREE.state_size) and cube.dtype == jnp.int32
  assert REFEREE.lost(cube).shape == REFEREE.right(cube).shape == (2, 2, 2)
  assert (np.asarray(cube).reshape(8, -1) == rows).all() and (np.asarray(one) == rows[3]).all()


def test_a_tokenizer_that_merges_answer_characters_is_refused():
  class Merging:
    vocab_size = 2

    def decode(self, ids, controls=False):
      return ["6", "6*"][ids[0]]

  with pytest.raises(UserError, match="one token for each character"):
    TASK.device_verifier(Merging())


def test_problem_array_pads_to_six_numbers():
  assert TASK.problem_array(TASK.parse("6 2 4 5 = 32")).tolist() == [2, 4, 5, 6, 0, 0, 32]
  assert TASK.problem_array(TASK.parse("6 2 = 12")).dtype == np.int32
