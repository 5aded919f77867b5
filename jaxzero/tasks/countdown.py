"""Countdown with steps: reach the target from the numbers, each used exactly once.

`2 4 5 6 = 32` is answered by `6*5=30 ; 4-2=2 ; 30+2=32 </think> 6*5+(4-2)`. Division is exact and
every result whole and not negative, so the values that a set of numbers can reach are finite:
problems are solved, and prefixes of answers judged, exactly. A completion is right if its answer
and each of its steps are: a lucky guess behind nonsense is wrong.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from random import Random

import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks import countdown_device, countdown_solver, expression, streams
from jaxzero.tasks.base import Completion, DeviceVerifier, Problem, TaskConfig, Verdict
from jaxzero.tokenizers import Tokenizer

MIN_NUMBERS, MAX_NUMBERS = 2, countdown_device.MAX_NUMBERS
LARGEST_NUMBER = 9999
LARGEST_TARGET = 999_999
MAX_PROMPT_LENGTH = 200
GOOD_PROMPT = 'a good prompt looks like "2 4 5 6 = 32"'


class Countdown:
  """The Countdown task; see `jaxzero.tasks.base.Task` for what each method promises."""

  name = "countdown"
  self_checkable = True
  symbols = ""
  array_size = MAX_NUMBERS + 1

  def __init__(self, config: TaskConfig):
    """Raises UserError if the settings are impossible."""
    _check(config)
    self.config = config

  def problem(self, split: str, seed: int, index: int) -> Problem:
    """Problem `index` of the split's stream; solvable, pure in (split, seed, index)."""
    config = self.config

    def candidate(rng: np.random.Generator) -> Problem | None:
      numbers = rng.integers(1, config.max_number + 1, size=config.numbers).tolist()
      target = _play(numbers, rng)
      return _problem(numbers, target) if 1 <= target <= config.max_target else None

    settings = (
      f"numbers={config.numbers}, max_number={config.max_number}, max_target={config.max_target}"
    )
    return streams.draw(split, seed, index, candidate, lambda problem: problem.id, settings)

  def problems(self, split: str, seed: int, count: int) -> list[Problem]:
    """The first `count` distinct problems of the stream; UserError if it has not so many."""
    return streams.first_distinct(self.problem, split, seed, count)

  def parse(self, prompt: str) -> Problem:
    """Reads `2 4 5 6 = 32`, in any order and spacing; UserError names what is wrong."""
    numbers, target = _read(prompt)
    return _problem(numbers, target)

  def verify(self, problem: Problem, answer: str, steps: Sequence[str] | None = None) -> Verdict:
    """Whether the answer is a legal expression over the problem's numbers that gives its target.

    Steps, where given, must be legal, too, in the canonical format, and reach the target.
    """
    numbers, target = _numbers_and_target(problem.id)
    value, reason = expression.evaluate(answer, numbers)
    if value is None:
      return Verdict(False, reason)
    if value != target:
      return Verdict(False, f"gives {value}")
    if steps is not None and countdown_solver.after_steps(numbers, steps) != (target,):
      return Verdict(False, "the steps are not a way to the target")
    return Verdict(True, "right")

  def worked_example(self, problem: Problem, seed: int = 0) -> Completion:
    """A pseudo-random solution, pure in (problem.id, seed); UserError if there is none."""
    completion = self.solve(problem, seed)
    if completion is None:
      raise UserError(f"{problem.id} has no solution; check the numbers and the target")
    return completion

  def solve(self, problem: Problem, seed: int = 0) -> Completion | None:
    """A right completion, or None exactly if there is none."""
    numbers, target = _numbers_and_target(problem.id)
    rng = Random(f"{problem.id} {seed}")
    tree = countdown_solver.random_solution(numbers, target, rng)
    return None if tree is None else countdown_solver.completion(tree, rng)

  def solvable(self, problem: Problem, prefix: str) -> bool:
    """Whether a right completion starts with `prefix`, the rendered text after `<think>`.

    Steps must be legal, in the canonical format, use every number and reach the target; then
    `</think>` and any right expression. Spaces around `;` and `</think>` do not matter.
    """
    numbers, target = _numbers_and_target(problem.id)
    return countdown_solver.solvable(numbers, target, prefix)

  def problem_array(self, problem: Problem) -> np.ndarray:
    """int32 [7]: the numbers padded with zeros to six, then the target."""
    numbers, target = _numbers_and_target(problem.id)
    return countdown_device.problem_array(numbers, target)

  def device_verifier(self, tokenizer: Tokenizer) -> DeviceVerifier:
    """`verify`, steps included, token by token in pure JAX."""
    return countdown_device.Automaton(tokenizer)


def _check(config: TaskConfig) -> None:
  if not MIN_NUMBERS <= config.numbers <= MAX_NUMBERS:
    raise UserError(
      f"numbers={config.numbers} is outside {MIN_NUMBERS}..{MAX_NUMBERS}; use 3, the default"
    )
  if not 1 <= config.max_number <= LARGEST_NUMBER:
    raise UserError(f"max_number={config.max_number} is outside 1..{LARGEST_NUMBER}; use 9 or so")
  if config.max_number**config.numbers > expression.LIMIT:
    raise UserError(
      f"max_number={config.max_number} with numbers={config.numbers} can reach "
      f"{config.max_number**config.numbers}, over the int32 limit {expression.LIMIT}; "
      "lower either one"
    )
  if not 1 <= config.max_target <= LARGEST_TARGET:
    raise UserError(f"max_target={config.max_target} is outside 1..{LARGEST_TARGET}; use 99 or so")
  if config.worked_examples < 1:
    raise UserError(f"worked_examples={config.worked_examples} must be at least 1")


def _play(numbers: list[int], rng: np.random.Generator) -> int:
  """The end of a game of random legal steps."""
  left = list(numbers)
  while len(left) > 1:
    a, b = (left.pop(rng.integers(len(left))) for _ in range(2))
    a, b = max(a, b), min(a, b)
    results = [result for op in "+-*/" if (result := expression.apply(a, op, b)) is not None]
    left.append(results[rng.integers(len(results))])
  return left[0]


def _problem(numbers: list[int], target: int) -> Problem:
  text = f"{' '.join(map(str, sorted(numbers)))} = {target}"
  return Problem(id=text, prompt=text)


@functools.lru_cache(maxsize=4096)
def _numbers_and_target(problem_id: str) -> tuple[tuple[int, ...], int]:
  numbers, target = _read(problem_id)
  return tuple(sorted(numbers)), target


def _read(prompt: str) -> tuple[list[int], int]:
  """The numbers and the target of a prompt; UserError says what was given and what is wanted."""
  shown = streams.shown(prompt)
  if len(prompt) > MAX_PROMPT_LENGTH:
    raise UserError(f"{shown} has {len(prompt)} characters, too many for a problem; {GOOD_PROMPT}")
  if not re.fullmatch(r" *[0-9]+( +[0-9]+)* *= *[0-9]+ *", prompt):
    raise UserError(f"{shown} is not whole numbers, an equals sign and a target; {GOOD_PROMPT}")
  left, right = prompt.split("=")
  numbers, target = [int(word) for word in left.split()], int(right)
  if not MIN_NUMBERS <= len(numbers) <= MAX_NUMBERS:
    raise UserError(
      f"{shown} has {len(numbers)} numbers, not {MIN_NUMBERS} to {MAX_NUMBERS}; {GOOD_PROMPT}"
    )
  for number in numbers:
    if not 1 <= number <= LARGEST_NUMBER:
      raise UserError(f"{shown}: the number {number} is outside 1..{LARGEST_NUMBER}; {GOOD_PROMPT}")
  if not 1 <= target <= LARGEST_TARGET:
    raise UserError(f"{shown}: the target {target} is outside 1..{LARGEST_TARGET}; {GOOD_PROMPT}")
  return numbers, target
