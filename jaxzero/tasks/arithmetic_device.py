"""Arithmetic's verifier in pure JAX: an automaton that reads a completion token by token.

It holds what the steps have left of the expression. A character that cannot stand where it does
loses the game at once, a step that is not legal when the step ends, an answer with the first digit
that the key has not. Given no key it holds no expression either, and judges the form alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.tasks.characters import Characters
from jaxzero.tokenizers import Tokenizer

LIMIT = 2**31 - 1
MAX_NUMBERS = 6
ALPHABET = "0123456789+-*="
PLUS, MINUS, TIMES, EQUALS = map(ALPHABET.index, "+-*=")

NONE = -1  # no number
THINKING, ANSWER, RIGHT, LOST, UNDECIDED = range(5)  # UNDECIDED: ended well formed, without a key


class State(NamedTuple):
  """What was read of a completion; int32."""

  known: jax.Array  # [..., 1] whether there is a key
  numbers: jax.Array  # [..., 6] of the expression left, padded with NONE
  operators: jax.Array  # [..., 6] codes between them, padded with 0
  key: jax.Array  # [..., 1]
  stage: jax.Array  # [..., 1]
  first: jax.Array  # [..., 1] the step's first number
  operator: jax.Array  # [..., 1] its operator, or 0
  second: jax.Array  # [..., 1] its second number, once "=" was read
  number: jax.Array  # [..., 1] the digits read so far


SIZES = (1, MAX_NUMBERS, MAX_NUMBERS, 1, 1, 1, 1, 1, 1)  # of its fields
ARRAY_SIZE = sum(SIZES[:4])  # of the fields that a problem gives


class Automaton:
  """A `DeviceVerifier` that agrees with `Arithmetic.verify` on every completion."""

  state_size: int = sum(SIZES)

  def __init__(self, tokenizer: Tokenizer):
    """Raises UserError if a token spells several characters of a step."""
    self._characters = Characters(tokenizer, ALPHABET)

  def start(self, problem_array: jax.Array) -> jax.Array:
    """`problem_array`s int32 [..., 14] -> states int32 [..., S] before the first token."""
    fresh = jnp.asarray([THINKING, NONE, 0, NONE, NONE], jnp.int32)
    shape = (*problem_array.shape[:-1], len(fresh))
    return jnp.concatenate([problem_array, jnp.broadcast_to(fresh, shape)], axis=-1)

  def read(self, state: jax.Array, token: jax.Array) -> jax.Array:
    """States [..., S] after one more token [...]; any token id will do."""
    code = self._characters.code(token)
    fields = State(*jnp.split(state, np.cumsum(SIZES)[:-1], axis=-1))
    return jnp.concatenate(self._read(fields, code[..., None]), axis=-1)

  def lost(self, state: jax.Array) -> jax.Array:
    """Bool [...]: no continuation of what was read is right."""
    return state[..., ARRAY_SIZE] == LOST

  def right(self, state: jax.Array) -> jax.Array:
    """Bool [...]: what was read is a right completion, and whatever may follow its end token."""
    return state[..., ARRAY_SIZE] == RIGHT

  def _read(self, state: State, code: jax.Array) -> State:
    """The state after a character [..., 1]."""
    step, end_think, end = self._characters.step, self._characters.end_think, self._characters.end
    known = state.known == 1
    thinking, answering = state.stage == THINKING, state.stage == ANSWER
    is_digit = code <= 9
    is_operator = (code >= PLUS) & (code <= TIMES)
    # A step is `first operator second = number`.
    in_first, in_result = state.operator == 0, state.second >= 0
    in_second = ~in_first & ~in_result
    ends_step = thinking & ((code == step) | (code == end_think))
    number = jnp.where(is_digit, jnp.maximum(state.number, 0) * 10 + code, NONE)
    has_number = state.number >= 0
    fits = (state.number != 0) & (state.number <= (LIMIT - code) // 10)
    of_steps = (
      (is_digit & fits)
      | (is_operator & has_number & in_first)
      | ((code == EQUALS) & has_number & in_second)
      | (ends_step & has_number & in_result)
    )
    of_answers = (is_digit & fits) | ((code == end) & has_number)
    ok = jnp.where(thinking, of_steps, of_answers)

    numbers, operators, legal = _take_step(state, state.number, ends_step & known)
    finished = (operators[..., :1] == 0) & (numbers[..., :1] == state.key)
    ok &= ~known | (legal & (~(ends_step & (code == end_think)) | finished))
    ok &= ~known | ~answering | ~is_digit | _begins(state.key, number)
    ok &= ~known | ~answering | (code != end) | (state.number == state.key)

    stage = jnp.where(ok, state.stage, LOST)
    stage = jnp.where(ok & (code == end_think), ANSWER, stage)
    stage = jnp.where(ok & (code == end), jnp.where(known, RIGHT, UNDECIDED), stage)
    return State(
      known=state.known,
      numbers=numbers,
      operators=operators,
      key=state.key,
      stage=jnp.where(thinking | answering, stage, state.stage),
      first=jnp.where(is_operator, state.number, jnp.where(ends_step, NONE, state.first)),
      operator=jnp.where(is_operator, code, jnp.where(ends_step, 0, state.operator)),
      second=jnp.where(code == EQUALS, state.number, jnp.where(ends_step, NONE, state.second)),
      number=number,
    )


def problem_array(numbers: tuple[int, ...], operators: str, key: str | None) -> np.ndarray:
  """int32 [14]: 1, the numbers, the operators' codes and the key; zeros if there is no key."""
  array = np.zeros(ARRAY_SIZE, np.int32)
  if key is not None:
    array[0], array[-1] = 1, int(key)
    array[1 : 1 + MAX_NUMBERS] = NONE
    array[1 : 1 + len(numbers)] = numbers
    codes = [ALPHABET.index(operator) for operator in operators]
    array[1 + MAX_NUMBERS : 1 + MAX_NUMBERS + len(codes)] = codes
  return array


def _take_step(
  state: State, result: jax.Array, when: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The step that was read: the numbers and operators left, and whether it is legal."""
  numbers, operators = state.numbers, state.operators
  zero, none = jnp.zeros_like(result), jnp.full_like(result, NONE)
  before = jnp.concatenate([zero, operators[..., :-1]], axis=-1)
  behind = jnp.concatenate([operators[..., 1:], zero], axis=-1)
  right_of = jnp.concatenate([numbers[..., 1:], none], axis=-1)
  index = jnp.arange(MAX_NUMBERS)
  may = jnp.where(operators == TIMES, before != TIMES, (index == 0) & (behind != TIMES))
  fits = (
    may
    & (operators != 0)
    & (operators == state.operator)
    & (numbers == state.first)
    & (right_of == state.second)
  )
  found = jnp.any(fits, axis=-1, keepdims=True)
  at = jnp.argmax(fits, axis=-1, keepdims=True)
  a, b = state.first, state.second
  exact = jnp.where(
    state.operator == TIMES,
    # Neither side of a legal step overflows; another may, and is not found.
    a * b,
    a + jnp.where(state.operator == PLUS, b, -b),
  )
  left = jnp.where(index < at, numbers, jnp.where(index == at, result, right_of))
  kept = jnp.where(index < at, operators, behind)
  return (
    jnp.where(when, left, numbers),
    jnp.where(when, kept, operators),
    ~when | (found & (exact == result)),
  )


def _begins(key: jax.Array, number: jax.Array) -> jax.Array:
  """Whether the key's digits begin with the number's."""
  powers = jnp.asarray([10**i for i in range(10)], jnp.int32)
  begins = (key // powers == number) & ((number > 0) | (key == 0))
  return jnp.any(begins, axis=-1, keepdims=True)
