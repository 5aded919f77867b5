"""A total language of small programs over whole numbers and lists of them, and a search for them.

A program is `x`, the input list, and pieces that each change the value: `x2*S` doubles every number
and sums them. A piece is a letter, or a digit and the operator that takes it:

  S M L    sum, maximum, length of a list
  R O E    a list reversed, ordered, its even numbers
  nT nD    the first n numbers of a list, all behind them
  nF       the numbers of a list that are over n
  n+ n- n* on a number, or on every number of a list

What has no value (a list's piece on a number, the maximum of nothing, a number beyond +-LIMIT) is
no program for the input. Nothing loops, lists never grow, so the number of pieces bounds the time.
"""

from __future__ import annotations

import functools
import re
from random import Random

LIMIT = 999
MAX_LENGTH = 5  # numbers of an input list
ON_LISTS = "SMLROE"
WITH_DIGIT = "+-*TDF"
PIECES = (*ON_LISTS, *(f"{digit}{op}" for op in WITH_DIGIT for digit in range(10)))

Value = int | tuple[int, ...]
Values = tuple[Value, ...]  # of one program on every example


def apply(piece: str, value: Value) -> Value | None:
  """What a piece of PIECES makes of a value, or None if it has no value there."""
  op, n = piece[-1], int(piece[0]) if len(piece) > 1 else 0
  if op in "+-*":
    numbers = value if isinstance(value, tuple) else (value,)
    mapped = tuple(a + n if op == "+" else a - n if op == "-" else a * n for a in numbers)
    result: Value = mapped if isinstance(value, tuple) else mapped[0]
  elif not isinstance(value, tuple) or (op == "M" and not value):
    return None
  else:
    result = _ON_LIST[op](value, n)
  numbers = result if isinstance(result, tuple) else (result,)
  return result if all(abs(number) <= LIMIT for number in numbers) else None


_ON_LIST = {
  "S": lambda value, n: sum(value),
  "M": lambda value, n: max(value),
  "L": lambda value, n: len(value),
  "R": lambda value, n: value[::-1],
  "O": lambda value, n: tuple(sorted(value)),
  "E": lambda value, n: tuple(a for a in value if a % 2 == 0),
  "T": lambda value, n: value[:n],
  "D": lambda value, n: value[n:],
  "F": lambda value, n: tuple(a for a in value if a > n),
}


@functools.lru_cache(maxsize=1 << 16)
def _results(value: Value) -> tuple[Value | None, ...]:
  """What each of PIECES makes of a value."""
  return tuple(apply(piece, value) for piece in PIECES)


def after(piece: str, values: Values) -> Values | None:
  """The values behind a piece on every example; None if it has none on one of them."""
  results = tuple(apply(piece, value) for value in values)
  return None if None in results else results  # type: ignore[return-value]


def run(program: str, inputs: Values, max_pieces: int) -> Values | None:
  """The values of a program text, of at most so many pieces; None if it is none, or has none."""
  if len(program) > 1 + 2 * max_pieces or not re.fullmatch(_PROGRAM, program):
    return None
  pieces = re.findall(_PIECE, program[1:])
  if len(pieces) > max_pieces:
    return None
  values: Values | None = inputs
  for piece in pieces:
    values = None if values is None else after(piece, values)
  return values


_PIECE = f"[{ON_LISTS}]|[0-9][{re.escape(WITH_DIGIT)}]"
_PROGRAM = f"x({_PIECE})*"


@functools.lru_cache(maxsize=1 << 14)
def reaches(values: Values, targets: Values, pieces: int) -> bool:
  """Whether at most so many pieces make the targets of the values."""
  return continuation(values, targets, pieces, Random(0)) is not None


def continuation(
  values: Values, targets: Values, pieces: int, rng: Random
) -> tuple[str, ...] | None:
  """A random one of the shortest ways from the values to the targets; None if there is none.

  Breadth first; ways that give equal values on all examples are one.
  """
  if values == targets:
    return ()
  layer: dict[Values, tuple[str, ...]] = {values: ()}
  seen = {values}
  for left in reversed(range(pieces)):
    states = list(layer.items())
    rng.shuffle(states)
    for state, way in states:
      if targets[0] in _results(state[0]):
        last = [piece for piece in PIECES if after(piece, state) == targets]
        if last:
          return (*way, rng.choice(last))
    if not left:
      break
    layer = {}
    for state, way in states:
      for piece, new in zip(PIECES, zip(*map(_results, state), strict=True), strict=True):
        if None not in new and new not in seen:
          seen.add(new)
          layer[new] = (*way, piece)
  return None


def render(value: Value) -> str:
  """`16`, `-3`, `(2 5 1)`, `()`."""
  return f"({' '.join(map(str, value))})" if isinstance(value, tuple) else str(value)
