"""Countdown's worked steps in pure JAX: `countdown_solver.after_steps` over a batch of tokens.

A step is `a op b=c`: two of the numbers that are left, replaced by their result. One loop turn
reads one token; the trip count is the longest thinking in the batch.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxzero.tasks.countdown_device import MAX_NUMBERS, code_table, look_up
from jaxzero.tasks.expression import LIMIT
from jaxzero.tokenizers import Tokenizer

ALPHABET = "0123456789+-*/="
PLUS, MINUS, TIMES, DIVIDE, EQUALS = (ALPHABET.index(char) for char in "+-*/=")
INVALID = len(ALPHABET)
SEPARATOR = INVALID + 1


def steps_verifier(
  tokenizer: Tokenizer,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """The verifier of worked steps for one tokenizer.

  Returns:
    f(problem_arrays int32 [B, 7], tokens int32 [B, T], length int32 [B]) -> bool [B]: whether
    tokens[b, :length[b]], steps with the step token between them, lead to the target and to
    nothing else.

  Raises:
    UserError: the tokenizer has tokens that spell several characters of a step.
  """
  table = jnp.asarray(code_table(tokenizer, ALPHABET)).at[tokenizer.step_id].set(SEPARATOR)

  def verify(problem_arrays: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
    return verify_codes(problem_arrays, look_up(table, tokens, INVALID), length)

  return verify


def verify_codes(problem_arrays: jax.Array, codes: jax.Array, length: jax.Array) -> jax.Array:
  """`steps_verifier` on character codes [B, T]."""
  B, T = codes.shape
  # The last step ends where the steps do, as if a separator followed.
  codes = jnp.pad(codes, ((0, 0), (0, 1)), constant_values=SEPARATOR)
  codes = jnp.where(jnp.arange(T + 1) == length[:, None], SEPARATOR, codes)
  numbers, target = problem_arrays[:, :MAX_NUMBERS], problem_arrays[:, MAX_NUMBERS]
  nothing = jnp.full(B, -1, jnp.int32)
  state = dict(
    ok=(length > 0) & (length <= T),
    left=jnp.where(numbers > 0, numbers, -1),  # -1: no number here
    number=nothing,  # the digits read so far; -1 where none are
    a=nothing,
    op=nothing,
    b=nothing,
  )

  def turn(index, state):
    read = _turn(state, codes[:, index])
    active = index <= length
    return {
      name: jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, state[name])
      for name, new in read.items()
    }

  turns = jnp.minimum(jnp.max(length, initial=0), T) + 1
  state = jax.lax.fori_loop(0, turns, turn, state)
  alone = jnp.sum(state["left"] >= 0, axis=1) == 1
  return state["ok"] & alone & (jnp.max(state["left"], axis=1) == target)


def _turn(state: dict[str, jax.Array], code: jax.Array) -> dict[str, jax.Array]:
  """Reads one character a row: `a`, `op`, `b`, `=`, the result, then a separator."""
  number, a, op, b, left = (state[name] for name in ("number", "a", "op", "b", "left"))
  is_digit = code <= 9
  is_operator = (code >= PLUS) & (code <= DIVIDE)
  is_equals, is_separator = code == EQUALS, code == SEPARATOR
  fits = (number != 0) & (number <= (LIMIT - code) // 10)  # no leading zero, no overflow
  longer = jnp.maximum(number, 0) * 10 + code

  without_a, has_a = _remove(left, a)
  rest, has_b = _remove(without_a, b)
  result, is_legal = _apply(a, op, b)
  free = (rest < 0) & (jnp.cumsum(rest < 0, axis=1) == 1)
  after = jnp.where(free, number[:, None], rest)

  ok = (
    state["ok"]
    & (is_digit | is_operator | is_equals | is_separator)
    & (~is_digit | fits)
    & (is_digit | (number >= 0))
    & (~is_operator | (op < 0))
    & (~is_equals | ((op >= 0) & (b < 0)))
    & (~is_separator | ((b >= 0) & has_a & has_b & is_legal & (result == number)))
  )
  return dict(
    ok=ok,
    left=jnp.where(is_separator[:, None], after, left),
    number=jnp.where(is_digit, longer, -1),
    a=jnp.where(is_operator, number, jnp.where(is_separator, -1, a)),
    op=jnp.where(is_operator, code, jnp.where(is_separator, -1, op)),
    b=jnp.where(is_equals, number, jnp.where(is_separator, -1, b)),
  )


def _remove(numbers: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
  """One occurrence of value [B] taken out of numbers [B, 6], and whether there was one."""
  matches = (numbers == value[:, None]) & (value >= 0)[:, None]
  first = matches & (jnp.cumsum(matches, axis=1) == 1)
  return jnp.where(first, -1, numbers), jnp.any(matches, axis=1)


def _apply(a: jax.Array, op: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """`expression.apply` of whole numbers within 0..LIMIT: the result, and whether it is legal."""
  divisor = jnp.maximum(b, 1)
  results = [a + b, a - b, a * b, a // divisor]
  legal = [
    a <= LIMIT - b,
    a >= b,
    (b == 0) | (a <= LIMIT // divisor),
    (b > 0) & (a // divisor * b == a),
  ]
  index = jnp.clip(op - PLUS, 0, 3)
  return (
    jnp.choose(index, results, mode="clip"),
    jnp.choose(index, legal, mode="clip"),
  )
