"""The programs' verifier in pure JAX: an automaton that runs a program as it is read.

It holds the value on every example; a piece changes all of them when its last character is read. A
step's value is compared with the first example's number by number. Whatever cannot be right, in
form or by value, loses the game at once, but for what a program gives, which its end decides.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.tasks.characters import Characters
from jaxzero.tasks.program_language import LIMIT, MAX_LENGTH, ON_LISTS, WITH_DIGIT, Values
from jaxzero.tokenizers import Tokenizer

MAX_EXAMPLES = 3
ALPHABET = "0123456789+-*()= xSMLROETDF"
PLUS, MINUS, TIMES, OPEN, CLOSE, EQUALS, SPACE, INPUT = map(ALPHABET.index, "+-*()= x")
SUM, MAXIMUM, LENGTH, REVERSE, ORDER, EVEN, TAKE, DROP, FILTER = map(ALPHABET.index, "SMLROETDF")
SYMBOLS = ALPHABET[INPUT:]

NUMBER, LIST = 1, 2  # kinds of values; the same on every example
NONE = -1
# What is read next; WITHIN: a number of a step's value, or "(" before it.
START, PIECE, EQUAL, VALUE, WITHIN, CLOSED, ANSWER, PROGRAM, RIGHT, LOST = range(10)


class State(NamedTuple):
  """What was read of a completion; int32."""

  input_lengths: jax.Array  # [..., 3]
  input_items: jax.Array  # [..., 15] each list padded with zeros
  target_kind: jax.Array  # [..., 1] 0 where the outputs are of both kinds, which nothing gives
  target_lengths: jax.Array  # [..., 3]
  target_items: jax.Array  # [..., 15]
  stage: jax.Array  # [..., 1]
  pieces: jax.Array  # [..., 1] of the program so far
  digit: jax.Array  # [..., 1] read for the operator to come, or NONE
  kind: jax.Array  # [..., 1] of the value
  lengths: jax.Array  # [..., 3] of the values; 1 for a number
  items: jax.Array  # [..., 15]
  compared: jax.Array  # [..., 1] numbers of the step's value that were read
  number: jax.Array  # [..., 1] the digits read so far of one, or NONE
  negative: jax.Array  # [..., 1]


_ITEMS = MAX_EXAMPLES * MAX_LENGTH
SIZES = (MAX_EXAMPLES, _ITEMS, 1, MAX_EXAMPLES, _ITEMS, 1, 1, 1, 1, MAX_EXAMPLES, _ITEMS, 1, 1, 1)
ARRAY_SIZE = sum(SIZES[:5])  # of the fields that a problem gives


class Automaton:
  """A `DeviceVerifier` that agrees with `Programs.verify` on every completion."""

  state_size: int = sum(SIZES)

  def __init__(self, tokenizer: Tokenizer, max_pieces: int):
    """Raises UserError if a token spells several characters of a step or a program."""
    self._characters, self._max_pieces = Characters(tokenizer, ALPHABET), max_pieces

  def start(self, problem_array: jax.Array) -> jax.Array:
    """`problem_array`s int32 [..., 37] -> states int32 [..., S] before the first token."""
    inputs = problem_array[..., : MAX_EXAMPLES + _ITEMS]
    shape = problem_array.shape[:-1]
    before, behind = (
      jnp.broadcast_to(jnp.asarray(fresh, jnp.int32), (*shape, len(fresh)))
      for fresh in ([START, 0, NONE, LIST], [0, NONE, 0])
    )
    return jnp.concatenate([problem_array, before, inputs, behind], axis=-1)

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
    chars, stage = self._characters, state.stage
    ends_step = (code == chars.step) | (code == chars.end_think)
    is_digit = code <= 9
    reads_piece = (stage == START) | (stage == PIECE) | (stage == PROGRAM)
    takes_digit = _among(code, WITH_DIGIT)
    runs = reads_piece & (takes_digit | _among(code, ON_LISTS))

    # A piece.
    kind, lengths, items, has_value = _apply(state, code)
    ran = has_value & (takes_digit == (state.digit >= 0)) & (state.pieces < self._max_pieces)
    piece_ok = jnp.where(runs, ran, is_digit & (state.digit < 0))
    is_target = _is_target(state)
    whole = state.digit < 0

    # A step's value on the first example.
    is_list = state.kind == LIST
    length, first = state.lengths[..., :1], state.items[..., :MAX_LENGTH]
    at = jnp.arange(MAX_LENGTH) == state.compared
    expected = jnp.sum(jnp.where(at, first, 0), axis=-1, keepdims=True)
    signed = jnp.where(state.negative == 1, -state.number, state.number)
    equal = (
      (state.number >= state.negative) & (signed == expected) & (state.compared < length)
    )  # "-0" is no number
    last = state.compared == length - 1
    untouched = (state.number < 0) & (state.negative == 0)
    opens = (stage == VALUE) & is_list & (code == OPEN)
    within = (stage == WITHIN) | ((stage == VALUE) & ~is_list)
    number = jnp.maximum(state.number, 0) * 10 + code
    value_ok = opens | (
      within
      & (
        (is_digit & (state.number != 0) & (number <= LIMIT))
        | ((code == MINUS) & untouched)
        | ((code == SPACE) & is_list & equal & ~last)
        | ((code == CLOSE) & is_list & jnp.where(length == 0, untouched, equal & last))
        | (ends_step & ~is_list & equal)
      )
    )
    ends_step_ok = ((stage == CLOSED) | (within & ~is_list & equal)) & ends_step
    nothing_ok = (stage == START) & (code == chars.end_think)

    ok = (
      (reads_piece & piece_ok)
      | ((stage == EQUAL) & (code == EQUALS))
      | value_ok
      | ends_step_ok
      | nothing_ok
      | ((stage == ANSWER) & (code == INPUT))
      | ((stage == PROGRAM) & whole & (code == chars.end))
    )
    ok &= is_target | ((code != chars.end_think) & (code != chars.end))

    following = jnp.where(runs & (stage != PROGRAM), EQUAL, stage)
    following = jnp.where(is_digit & (stage == START), PIECE, following)
    following = jnp.where(code == EQUALS, VALUE, following)
    following = jnp.where(within, WITHIN, following)
    following = jnp.where(opens, WITHIN, following)
    following = jnp.where(code == CLOSE, CLOSED, following)
    for read, then in (
      (chars.step, PIECE),
      (chars.end_think, ANSWER),
      (INPUT, PROGRAM),
      (chars.end, RIGHT),
    ):
      following = jnp.where(code == read, then, following)

    back = code == chars.end_think
    return state._replace(
      stage=jnp.where(stage >= RIGHT, stage, jnp.where(ok, following, LOST)),
      pieces=jnp.where(back, 0, state.pieces + runs),
      digit=jnp.where(reads_piece & is_digit, code, NONE),
      kind=jnp.where(back, LIST, jnp.where(runs, kind, state.kind)),
      lengths=jnp.where(back, state.input_lengths, jnp.where(runs, lengths, state.lengths)),
      items=jnp.where(back, state.input_items, jnp.where(runs, items, state.items)),
      compared=jnp.where(code == EQUALS, 0, state.compared + (code == SPACE)),
      number=jnp.where(within & is_digit, number, NONE),
      negative=jnp.where(
        within & (is_digit | (code == MINUS)), (code == MINUS) | state.negative, 0
      ),
    )


def problem_array(inputs: Values, outputs: Values) -> np.ndarray:
  """int32 [37]: lengths and items of the inputs, then kind, lengths and items of the outputs."""
  padding = MAX_EXAMPLES - len(inputs)
  kinds = {LIST if isinstance(value, tuple) else NUMBER for value in outputs}
  parts: list[list[int]] = []
  for values in (inputs, outputs):
    lists = [value if isinstance(value, tuple) else (value,) for value in values]
    lists += [lists[0]] * padding
    parts.append([len(one) for one in lists])
    parts.append([n for one in lists for n in (*one, *(0,) * (MAX_LENGTH - len(one)))])
  parts.insert(2, [kinds.pop() if len(kinds) == 1 else 0])
  return np.asarray([number for part in parts for number in part], np.int32)


def _among(code: jax.Array, chars: str) -> jax.Array:
  return jnp.any(code == jnp.asarray([ALPHABET.index(char) for char in chars]), -1, keepdims=True)


def _is_target(state: State) -> jax.Array:
  """Whether every example's value is its output [..., 1]."""
  same = [
    jnp.all(a == b, axis=-1, keepdims=True)
    for a, b in (
      (state.kind, state.target_kind),
      (state.lengths, state.target_lengths),
      (state.items, state.target_items),
    )
  ]
  return same[0] & same[1] & same[2]


def _apply(state: State, code: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """The values behind the piece that ends with an operator: kind, lengths, items, and whether
  there is one on every example; numbers move within their list, and results are one."""
  shape = (*code.shape[:-1], MAX_EXAMPLES, MAX_LENGTH)
  items, length = state.items.reshape(shape), state.lengths[..., None]
  op, n = code[..., None], jnp.maximum(state.digit, 0)[..., None]
  index = jnp.arange(MAX_LENGTH)
  given = index < length

  mapped = jnp.where(op == PLUS, items + n, jnp.where(op == MINUS, items - n, items * n))
  is_map = op <= TIMES
  items = jnp.where(given, jnp.where(is_map, mapped, items), 0)

  keep = jnp.where(op == EVEN, items % 2 == 0, jnp.where(op == FILTER, items > n, True))
  keep &= jnp.where(op == TAKE, index < n, jnp.where(op == DROP, index >= n, True)) & given
  a, b = items[..., :, None], items[..., None, :]
  before = (b < a) | ((b == a) & (index[None, :] < index[:, None]))
  rank = jnp.sum(before & given[..., None, :], axis=-1)
  place = jnp.cumsum(keep, axis=-1) - 1
  place = jnp.where(op == ORDER, rank, jnp.where(op == REVERSE, length - 1 - index, place))
  there = keep[..., :, None] & (place[..., :, None] == index)
  moved = jnp.sum(jnp.where(there, a, 0), axis=-2)
  count = jnp.sum(keep, axis=-1, keepdims=True)

  most = jnp.max(jnp.where(given, items, -LIMIT - 1), axis=-1, keepdims=True)
  one = jnp.where(
    op == SUM, jnp.sum(items, axis=-1, keepdims=True), jnp.where(op == LENGTH, length, most)
  )
  is_one = (op == SUM) | (op == MAXIMUM) | (op == LENGTH)
  new_items = jnp.where(is_one, jnp.where(index == 0, one, 0), moved)
  new_length = jnp.where(is_one, 1, count)
  legal = jnp.all(jnp.abs(new_items) <= LIMIT, axis=(-1, -2))[..., None]
  kind = jnp.where(is_one[..., 0], NUMBER, state.kind)
  return (
    kind,
    new_length[..., 0],
    new_items.reshape(state.items.shape),
    legal & (is_map[..., 0] | (state.kind == LIST)),
  )
