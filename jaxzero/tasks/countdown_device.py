"""Countdown's verifier in pure JAX: an automaton that reads a completion token by token.

It is `countdown_solver.after_steps` and, behind `</think>`, `expression.Machine`. Both read
numbers, take them from those left and apply operators, so they share one state: an operator pushes
the value before it onto a stack, and what completes its right side pops it. A step that goes wrong
loses the game when the step ends; an answer loses it at once.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.tasks import expression
from jaxzero.tasks.characters import Characters
from jaxzero.tasks.expression import LIMIT, MAX_LENGTH
from jaxzero.tokenizers import Tokenizer

MAX_NUMBERS = 6
# Every value that waits for its right side has used a number, and another one must still come, so
# five may wait. An answer that stacks more cannot end right, and the stack forgets its lowest.
MAX_WAITING = MAX_NUMBERS - 1

# A character's code is its index in ALPHABET: digits are 0..9.
ALPHABET = expression.ALPHABET + "="
PLUS, MINUS, TIMES, DIVIDE, OPEN, CLOSE, SPACE, EQUALS = map(ALPHABET.index, "+-*/() =")
STEP, END_THINK, END = range(len(ALPHABET), len(ALPHABET) + 3)

NONE = -1  # no number, no value
THINKING, FAULTY, ANSWER, RIGHT, LOST = range(5)  # FAULTY: thinking, in a step that went wrong

# A mark of the stack is an operator's `code - PLUS + 1` (0 at the bottom), plus LEVEL for each
# parenthesis opened behind it: however many open in a row, they take one mark.
ADD, SUBTRACT, MULTIPLY, DIVIDE_BY = range(1, 5)
LEVEL = 8


class State(NamedTuple):
  """What was read of a completion; int32."""

  numbers: jax.Array  # [..., 6] the problem's, padded with NONE
  left: jax.Array  # [..., 6] those that are not used yet
  waiting: jax.Array  # [..., 5] the stack's values, top first
  marks: jax.Array  # [..., 6] the operators behind them, and the bottom of the stack
  target: jax.Array  # [..., 1]
  stage: jax.Array  # [..., 1]
  length: jax.Array  # [..., 1] tokens of the answer
  number: jax.Array  # [..., 1] the digits read so far
  value: jax.Array  # [..., 1] what was worked out since the last operator


SIZES = (MAX_NUMBERS, MAX_NUMBERS, MAX_WAITING, MAX_WAITING + 1, 1, 1, 1, 1, 1)  # of its fields


class Automaton:
  """A `DeviceVerifier` that agrees with `Countdown.verify` on every completion."""

  state_size: int = sum(SIZES)

  def __init__(self, tokenizer: Tokenizer):
    """Raises UserError if a token spells several characters of a step or an answer."""
    self._characters = Characters(tokenizer, ALPHABET)

  def start(self, problem_array: jax.Array) -> jax.Array:
    """`problem_array`s int32 [..., 7] -> states int32 [..., S] before the first token."""
    numbers = jnp.where(problem_array > 0, problem_array, NONE)[..., :MAX_NUMBERS]
    zeros = [jnp.zeros((*problem_array.shape[:-1], size), jnp.int32) for size in SIZES]
    state = State(*zeros)._replace(
      numbers=numbers,
      left=numbers,
      target=problem_array[..., MAX_NUMBERS:],
      number=zeros[-1] + NONE,
      value=zeros[-1] + NONE,
    )
    return jnp.concatenate(state, axis=-1)

  def read(self, state: jax.Array, token: jax.Array) -> jax.Array:
    """States [..., S] after one more token [...]; any token id will do."""
    code = self._characters.code(token)
    return jnp.concatenate(_read(_unpack(state), code[..., None]), axis=-1)

  def lost(self, state: jax.Array) -> jax.Array:
    """Bool [...]: no continuation of what was read is right."""
    return _unpack(state).stage[..., 0] == LOST

  def right(self, state: jax.Array) -> jax.Array:
    """Bool [...]: what was read is a right completion, and whatever may follow its end token."""
    return _unpack(state).stage[..., 0] == RIGHT


def problem_array(numbers: tuple[int, ...], target: int) -> np.ndarray:
  """int32 [MAX_NUMBERS + 1]: the numbers padded with zeros, then the target."""
  padding = (0,) * (MAX_NUMBERS - len(numbers))
  return np.asarray((*numbers, *padding, target), np.int32)


def _unpack(state: jax.Array) -> State:
  return State(*jnp.split(state, np.cumsum(SIZES)[:-1], axis=-1))


def _read(state: State, code: jax.Array) -> State:
  """The state after a character [..., 1]."""
  thinking = state.stage <= FAULTY
  is_digit = code <= 9
  is_operator = (code >= PLUS) & (code <= DIVIDE)
  ends_step = (code == STEP) | (code == END_THINK)
  ends_sum = (code == PLUS) | (code == MINUS) | (code == CLOSE) | (code == END) | ends_step
  first_mark = state.marks[..., :1]

  # A number ends. In a step's result it is only compared; at the next step it is there to be used.
  arrives = (state.number >= 0) & jnp.where(thinking, is_operator | (code == EQUALS), ~is_digit)
  left, found = _exchange(
    state.left,
    jnp.where(code == STEP, NONE, state.number),
    jnp.where(code == STEP, state.number, NONE),
    arrives | (code == STEP),
  )
  operand = jnp.where(arrives, state.number, state.value)

  # It completes a product, and this token may complete a sum and, closing it, another product.
  waiting, marks = state.waiting, state.marks
  multiplies = jnp.where(thinking, ends_step, arrives)
  value, waiting, marks, legal_1 = _multiply(operand, waiting, marks, multiplies)
  value, waiting, marks, legal_2 = _add(value, waiting, marks, ends_sum)
  last_mark = marks[..., :1]
  marks = _on_top(marks, last_mark + LEVEL * ((code == OPEN) * 1 - (code == CLOSE)))
  result = value
  value, waiting, marks, legal_3 = _multiply(value, waiting, marks, code == CLOSE)

  empty = jnp.all(left == NONE, axis=-1, keepdims=True)
  ok = (
    (state.stage != FAULTY)
    & (~arrives | found)
    & (legal_1 & legal_2 & legal_3)
    & (~is_digit | (_fits(state.number, code) & (thinking | (state.value < 0))))
    & (~(is_operator | ends_sum) | (operand >= 0))
    & (~(is_operator & thinking) | (first_mark == 0))
    & ((code != EQUALS) | ((state.number >= 0) & (first_mark > 0) & (state.value < 0)))
    & (~ends_step | (result == state.number))
    & ((code != OPEN) | (operand < 0))
    & ((code != CLOSE) | (last_mark >= LEVEL))
    & (((code != END_THINK) & (code != END)) | (empty & (result == state.target)))
    & ((code != END) | (last_mark == 0))
  )
  return State(
    numbers=state.numbers,
    left=jnp.where(code == END_THINK, state.numbers, left),
    waiting=jnp.where(is_operator, _push(waiting, value), waiting),
    marks=jnp.where(is_operator, _push(marks, code - PLUS + 1), marks),
    target=state.target,
    stage=_next_stage(state, code, ok),
    length=state.length + (state.stage == ANSWER),
    number=jnp.where(is_digit, jnp.maximum(state.number, 0) * 10 + code, NONE),
    value=jnp.where(is_operator | ends_step, NONE, value),
  )


def _next_stage(state: State, code: jax.Array, ok: jax.Array) -> jax.Array:
  thinking = state.stage <= FAULTY
  of_both = code <= DIVIDE
  of_steps = of_both | (code == EQUALS) | (code == STEP) | (code == END_THINK)
  of_answers = of_both | ((code >= OPEN) & (code <= SPACE)) | (code == END)
  too_long = (code != END) & (state.length >= MAX_LENGTH)
  judged = ~thinking | (code == STEP) | (code == END_THINK)
  lost = jnp.where(thinking, ~of_steps, ~of_answers | too_long) | (judged & ~ok)
  stage = jnp.where(ok, state.stage, FAULTY)
  stage = jnp.where(code == END_THINK, ANSWER, jnp.where(code == END, RIGHT, stage))
  return jnp.where(state.stage >= RIGHT, state.stage, jnp.where(lost, LOST, stage))


def _fits(number: jax.Array, digit: jax.Array) -> jax.Array:
  """Whether a digit may follow: no leading zero, nothing beyond LIMIT."""
  return (number != 0) & (number <= (LIMIT - digit) // 10)


def _exchange(
  numbers: jax.Array, old: jax.Array, new: jax.Array, when: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """One `old` [..., 1] of numbers [..., 6] replaced by `new`, and whether there was one."""
  index = jnp.arange(MAX_NUMBERS)
  at = jnp.max(jnp.where(numbers == old, index, -1), axis=-1, keepdims=True)
  return jnp.where(when & (index == at), new, numbers), at >= 0


def _multiply(
  value: jax.Array, waiting: jax.Array, marks: jax.Array, when: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Applies the * or / on top, if there is one: new value, waiting, marks, and if it is legal."""
  first, mark = waiting[..., :1], marks[..., :1]
  when = when & ((mark == MULTIPLY) | (mark == DIVIDE_BY))
  divides = mark == DIVIDE_BY
  # One division decides exactness or overflow.
  quotient = jnp.where(divides, first, LIMIT) // jnp.maximum(value, 1)
  result = jnp.where(divides, quotient, first * value)
  legal = jnp.where(divides, (value > 0) & (quotient * value == first), first <= quotient)
  return _pop(when, result, value, waiting, marks, legal)


def _add(
  value: jax.Array, waiting: jax.Array, marks: jax.Array, when: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """Applies the + or - on top, as `_multiply`; an int32 sum beyond LIMIT wraps below 0."""
  first, mark = waiting[..., :1], marks[..., :1]
  when = when & ((mark == ADD) | (mark == SUBTRACT))
  result = first + jnp.where(mark == ADD, value, -value)
  return _pop(when, result, value, waiting, marks, result >= 0)


def _pop(
  when: jax.Array,
  result: jax.Array,
  value: jax.Array,
  waiting: jax.Array,
  marks: jax.Array,
  legal: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  zero = jnp.zeros_like(value)
  waiting, marks = (
    jnp.where(when, jnp.concatenate([stack[..., 1:], zero], axis=-1), stack)
    for stack in (waiting, marks)
  )
  return jnp.where(when, result, value), waiting, marks, ~when | legal


def _push(stack: jax.Array, top: jax.Array) -> jax.Array:
  return jnp.concatenate([top, stack[..., :-1]], axis=-1)


def _on_top(stack: jax.Array, top: jax.Array) -> jax.Array:
  return jnp.concatenate([top, stack[..., 1:]], axis=-1)
