"""Countdown's answers in pure JAX: `expression.Machine` over a batch of token sequences.

One loop turn reads one token; the trip count is the longest answer in the batch, so a batch without
finished answers costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks.expression import ALPHABET, LIMIT, MAX_LENGTH
from jaxzero.tokenizers import Tokenizer

MAX_NUMBERS = 6
NUMBER_CAP = 10**6  # longer digit runs stay here; no problem has such a number

# A character's code is its index in ALPHABET: digits are 0..9.
PLUS, MINUS, TIMES, DIVIDE, OPEN, CLOSE, SPACE = (ALPHABET.index(char) for char in "+-*/() ")
INVALID = len(ALPHABET)


def problem_array(numbers: tuple[int, ...], target: int) -> np.ndarray:
  """int32 [MAX_NUMBERS + 1]: the numbers padded with zeros, then the target."""
  padding = (0,) * (MAX_NUMBERS - len(numbers))
  return np.asarray((*numbers, *padding, target), np.int32)


def answer_verifier(
  tokenizer: Tokenizer,
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
  """The verifier for one tokenizer; agrees with `Countdown.verify` on every answer of T tokens.

  Returns:
    f(problem_arrays int32 [B, 7], tokens int32 [B, T], length int32 [B]) -> bool [B]; only
    tokens[b, :length[b]] are read, and a length of 0 is an empty, hence wrong, answer.

  Raises:
    UserError: the tokenizer has tokens that spell several characters of an answer.
  """
  table = jnp.asarray(code_table(tokenizer, ALPHABET))

  def verify(problem_arrays: jax.Array, tokens: jax.Array, length: jax.Array) -> jax.Array:
    return verify_codes(problem_arrays, look_up(table, tokens, INVALID), length)

  return verify


def code_table(tokenizer: Tokenizer, alphabet: str) -> np.ndarray:
  """int32 [V]: each token's index in the alphabet, len(alphabet) where it is not of it."""
  table = np.full(tokenizer.vocab_size, len(alphabet), np.int32)
  for i in range(tokenizer.vocab_size):
    text = tokenizer.decode([i], controls=True)
    if text and set(text) <= set(alphabet):
      if len(text) > 1:
        raise UserError(
          f"token {i} of this tokenizer spells {text!r}; the device verifier needs one token for "
          "each character of an answer, so use a tokenizer that never merges them"
        )
      table[i] = alphabet.index(text)
  return table


def look_up(table: jax.Array, tokens: jax.Array, invalid: int) -> jax.Array:
  """The code of each token; `invalid` for ids outside the vocabulary."""
  return table.at[tokens].get(mode="fill", fill_value=invalid, wrap_negative_indices=False)


def verify_codes(problem_arrays: jax.Array, codes: jax.Array, length: jax.Array) -> jax.Array:
  """Whether each row of character codes is a right answer.

  Args:
    problem_arrays: [B, 7] int32, see `problem_array`.
    codes: [B, T] int32, see `code_table`; T may be at most 1000, the longest answer allowed.
    length: [B] int32, how many codes of each row belong to the answer.

  Returns:
    [B] bool.
  """
  batch, width = codes.shape
  if width > MAX_LENGTH:
    raise UserError(f"answers of {width} tokens are longer than {MAX_LENGTH}; use shorter ones")
  if width == 0:
    return jnp.zeros((batch,), bool)
  # After the answer come spaces: they end its last number and change nothing else.
  inside = jnp.arange(width) < length[:, None]
  codes = jnp.where(inside, codes, SPACE)
  following = jnp.concatenate([codes[:, 1:], jnp.full((batch, 1), SPACE, codes.dtype)], axis=1)
  # Levels beyond these cannot close in time, so it does no harm that the stack drops them.
  depths = max(1, (width - 1) // 2)
  zero = jnp.zeros((batch,), jnp.int32)
  state = dict(
    ok=jnp.ones((batch,), bool),
    ready=jnp.zeros((batch,), bool),  # an operand has just ended
    number=zero - 1,  # the digits read so far; -1 where none are
    acc=zero,
    term=zero + 1,
    ops=zero,  # bit 0: subtract the term from acc; bit 1: divide the term by the next operand
    depth=zero,
    stack=jnp.zeros((batch, 3, depths), jnp.int32),  # (acc, term, ops) of each open level
    rest=problem_arrays[:, :MAX_NUMBERS],
  )
  turns = jnp.minimum(jnp.max(length, initial=0), width)
  state = jax.lax.fori_loop(0, turns, lambda i, s: _turn(s, codes[:, i], following[:, i]), state)
  value, is_whole = _total(state["acc"], state["term"], state["ops"])
  used = jnp.all(state["rest"] == 0, axis=1)
  closed = state["ready"] & (state["depth"] == 0)
  right = is_whole & used & closed & (value == problem_arrays[:, MAX_NUMBERS])
  return state["ok"] & right & (length > 0) & (length <= width)


def _turn(state: dict[str, jax.Array], code: jax.Array, following: jax.Array) -> dict:
  """Reads one character per row; the same transitions as `expression.Machine.feed`."""
  ready, acc, term, ops, depth = (state[k] for k in ("ready", "acc", "term", "ops", "depth"))
  is_digit = code <= 9
  is_open, is_close = code == OPEN, code == CLOSE
  is_operator = (code >= PLUS) & (code <= DIVIDE)
  is_sum = (code == PLUS) | (code == MINUS)

  number = state["number"]
  leading_zero = is_digit & (number == 0)
  number = jnp.where(is_digit, jnp.minimum(jnp.maximum(number, 0) * 10 + code, NUMBER_CAP), -1)
  ends_number = is_digit & (following > 9)
  matches = (state["rest"] == number[:, None]) & (number > 0)[:, None]
  first = matches & (jnp.cumsum(matches, axis=1) == 1)
  rest = jnp.where(first & ends_number[:, None], 0, state["rest"])

  total, is_whole = _total(acc, term, ops)
  at = jnp.arange(state["stack"].shape[-1])
  below = jnp.sum(jnp.where(at == depth[:, None, None] - 1, state["stack"], 0), axis=-1)
  here = jnp.stack([acc, term, ops], axis=1)[:, :, None]
  pushes = is_open[:, None, None] & (at == depth[:, None, None])
  stack = jnp.where(pushes, here, state["stack"])

  # An operand arrives: a finished number in this level, or this level's total in the one below.
  operand = jnp.where(is_close, total, number)
  acc = jnp.where(is_close, below[:, 0], acc)
  ops = jnp.where(is_close, below[:, 2], ops)
  product, is_legal = _product(jnp.where(is_close, below[:, 1], term), operand, ops)
  arrives = ends_number | is_close

  fresh = is_open | is_sum
  ok = (
    state["ok"]
    & (code != INVALID)
    & ~leading_zero
    & ~((is_digit | is_open) & ready)
    & ~((is_operator | is_close) & ~ready)
    & ~(ends_number & ~jnp.any(matches, axis=1))
    & ~((is_sum | is_close) & ~is_whole)
    & ~(is_close & (depth == 0))
    & ~(arrives & ~is_legal)
  )
  return dict(
    ok=ok,
    ready=(ready & ~is_operator & ~is_open) | arrives,
    number=jnp.where(ends_number, -1, number),
    acc=jnp.where(is_open, 0, jnp.where(is_sum, total, acc)),
    term=jnp.where(fresh, 1, jnp.where(arrives, product, term)),
    ops=jnp.where(is_open, 0, jnp.where(is_operator, _next_ops(ops, code, is_sum), ops)),
    depth=depth + is_open - is_close,
    stack=stack,
    rest=rest,
  )


def _next_ops(ops: jax.Array, code: jax.Array, is_sum: jax.Array) -> jax.Array:
  return jnp.where(is_sum, (code == MINUS).astype(jnp.int32), (ops & 1) + 2 * (code == DIVIDE))


def _total(acc: jax.Array, term: jax.Array, ops: jax.Array) -> tuple[jax.Array, jax.Array]:
  """acc plus or minus term; legal within 0..LIMIT, and an int32 sum beyond LIMIT wraps below 0."""
  total = jnp.where((ops & 1) == 1, acc - term, acc + term)
  return total, total >= 0


def _product(term: jax.Array, operand: jax.Array, ops: jax.Array) -> tuple[jax.Array, jax.Array]:
  """term times or over operand; one division decides exactness or overflow."""
  divides = ops >= 2
  quotient = jnp.where(divides, term, LIMIT) // jnp.maximum(operand, 1)
  is_legal = jnp.where(divides, (operand > 0) & (quotient * operand == term), term <= quotient)
  return jnp.where(divides, quotient, term * operand), is_legal
