"""Countdown solved exactly, from the values that every sub-multiset of the numbers can reach.

A set of numbers is a sorted tuple; a solution is a tree `(left, op, right)` over numbers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from jaxzero.tasks import expression
from jaxzero.tasks.base import Completion
from jaxzero.tasks.expression import Frame, apply

Numbers = tuple[int, ...]
Tree = Any  # int | tuple[Tree, str, Tree]

END_THINK = "</think>"


@functools.lru_cache(maxsize=8192)
def splits(numbers: Numbers) -> tuple[tuple[Numbers, Numbers], ...]:
  """Every way to cut the numbers in two non-empty ordered parts, without repeats."""
  found = {}
  for size in range(1, len(numbers)):
    for chosen in itertools.combinations(range(len(numbers)), size):
      part = tuple(numbers[i] for i in chosen)
      found[part] = tuple(n for i, n in enumerate(numbers) if i not in chosen)
  return tuple(found.items())


def values(numbers: Numbers) -> frozenset[int]:
  """Everything that legal steps make of all the numbers."""
  return (_small_values if len(numbers) <= 3 else _large_values)(numbers)


def _values(numbers: Numbers) -> frozenset[int]:
  if len(numbers) == 1:
    return frozenset(numbers)
  return frozenset(
    result
    for left, right in splits(numbers)
    for a in values(left)
    for b in values(right)
    for op in ("+-*/" if a >= b else "")
    if (result := apply(a, op, b)) is not None
  )


# A set of five numbers can reach 100,000 values, so only the small sets are all worth keeping.
_small_values = functools.lru_cache(maxsize=8192)(_values)
_large_values = functools.lru_cache(maxsize=64)(_values)


def decompositions(
  numbers: Numbers, target: int
) -> Iterator[tuple[Numbers, int, str, Numbers, int]]:
  """All (left, a, op, right, b): left reaches a, right reaches b, a >= b, and a op b = target."""
  for left, right in splits(numbers):
    reachable = values(right)
    for a in values(left):
      candidates = [("+", target - a), ("-", a - target)]
      if a and target % a == 0:
        candidates.append(("*", target // a))
      if target and a % target == 0:
        candidates.append(("/", a // target))
      if not a and not target:
        candidates.append(("*", 0))
      for op, b in candidates:
        if a >= b and b in reachable and apply(a, op, b) == target:
          yield left, a, op, right, b


@functools.lru_cache(maxsize=16384)
def reaches(numbers: Numbers, target: int) -> bool:
  """Whether legal steps make the target of all the numbers."""
  if len(numbers) <= 3:
    return target in values(numbers)
  return next(decompositions(numbers, target), None) is not None


def random_solution(numbers: Numbers, target: int, rng: Random) -> Tree | None:
  """A solution drawn top down, each last step uniform among those that can be reached."""
  if len(numbers) == 1:
    return target if numbers == (target,) else None
  options = sorted(decompositions(numbers, target))
  if not options:
    return None
  left, a, op, right, b = options[rng.randrange(len(options))]
  return random_solution(left, a, rng), op, random_solution(right, b, rng)


def completion(tree: Tree, rng: Random) -> Completion:
  """The steps of a solution, subtrees in random order, and its expression."""
  steps: list[str] = []
  _work(tree, rng, steps)
  return Completion(steps=tuple(steps), answer=_render(tree))


def _work(tree: Tree, rng: Random, steps: list[str]) -> int:
  if isinstance(tree, int):
    return tree
  left, op, right = tree
  if rng.random() < 0.5:
    a, b = _work(left, rng, steps), _work(right, rng, steps)
  else:
    b, a = _work(right, rng, steps), _work(left, rng, steps)
  result = apply(a, op, b)
  assert result is not None
  steps.append(f"{a}{op}{b}={result}")
  return result


def _render(tree: Tree, tight: bool = False, right: bool = False) -> str:
  """The tree as text with the fewest parentheses that keep its order of evaluation."""
  if isinstance(tree, int):
    return str(tree)
  a, op, b = tree
  is_product = op in "*/"
  text = _render(a, tight=is_product) + op + _render(b, tight=is_product, right=True)
  needed = (tight and not is_product) or (right and tight == is_product)
  return f"({text})" if needed else text


def after_steps(numbers: Numbers, steps: Sequence[str]) -> Numbers | None:
  """The numbers left, sorted, after steps in the canonical format; None if one is not legal."""
  left: Numbers | None = numbers
  for step in steps:
    left = _steps(left).get(step)
    if left is None:
      return None
  return left


def solvable(numbers: Numbers, target: int, prefix: str) -> bool:
  """Whether a right completion starts with `prefix`; see `Countdown.solvable`."""
  thinking, end, answer = prefix.partition(END_THINK)
  *finished, last = thinking.split(";")
  left = after_steps(
    numbers, [step.strip(" ") for step in ([*finished, last] if end else finished)]
  )
  if left is None:
    return False
  if end:
    return left == (target,) and _answer_extends(answer, numbers, target)
  fragment = last.strip(" ")
  if not fragment:
    return reaches(left, target) and (len(left) > 1 or not finished)
  is_whole = last.endswith(" ")
  return any(
    (text == fragment if is_whole else text.startswith(fragment)) and reaches(after, target)
    for text, after in _steps(left).items()
  )


@functools.lru_cache(maxsize=4096)
def _steps(numbers: Numbers) -> dict[str, Numbers]:
  """Every legal step's text, with the numbers that it leaves."""
  steps = {}
  for i, j in itertools.permutations(range(len(numbers)), 2):
    rest = [n for k, n in enumerate(numbers) if k not in (i, j)]
    for op in "+-*/":
      result = apply(numbers[i], op, numbers[j])
      if result is not None:
        steps[f"{numbers[i]}{op}{numbers[j]}={result}"] = tuple(sorted([*rest, result]))
  return steps


def _answer_extends(prefix: str, numbers: Numbers, target: int) -> bool:
  """Whether some right expression starts with `prefix`."""
  unfinished = prefix[len(prefix.rstrip(expression.DIGITS)) :]
  tokens, reason = expression.tokenize(prefix[: len(prefix) - len(unfinished)])
  machine = expression.Machine(numbers)
  if reason or not all(machine.feed(token) for token in tokens):
    return False
  if not prefix.strip(" "):
    return reaches(numbers, target)
  frames, rest = tuple(machine.frames), tuple(machine.rest)
  if not unfinished:
    return _extends(frames, machine.ready, rest, target, set())
  if machine.ready:
    return False
  return any(
    (after := _operand(frames, number)) is not None
    and _extends(after, True, _without(rest, (number,)), target, set())
    for number in sorted(set(rest))
    if str(number).startswith(unfinished)
  )


def _extends(frames: tuple[Frame, ...], ready: bool, rest: Numbers, target: int, seen: set) -> bool:
  """Depth-first over what may follow; an operand is a number or a parenthesised set of them."""
  state = (frames, ready, rest)
  if state in seen:
    return False
  seen.add(state)
  if not ready:
    for part, others in [(rest, ()), *splits(rest)] if rest else []:
      for value in values(part):
        after = _operand(frames, value)
        if after is not None and _extends(after, True, others, target, seen):
          return True
    return False
  total = expression.close(frames[-1])
  if len(frames) == 1:
    if not rest and total == target:
      return True
  elif total is not None:
    after = _operand(frames[:-1], total)
    if after is not None and _extends(after, True, rest, target, seen):
      return True
  for op in "+-*/" if rest else "":
    frame = expression.with_operator(frames[-1], op)
    if frame is not None and _extends((*frames[:-1], frame), False, rest, target, seen):
      return True
  return False


def _operand(frames: tuple[Frame, ...], value: int) -> tuple[Frame, ...] | None:
  frame = expression.with_operand(frames[-1], value)
  return None if frame is None else (*frames[:-1], frame)


def _without(numbers: Numbers, part: Numbers) -> Numbers:
  left = list(numbers)
  for number in part:
    left.remove(number)
  return tuple(left)
