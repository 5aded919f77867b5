"""Multi-digit arithmetic with worked steps: one operation a step, then the result.

`12+47*3-58` is answered by `47*3=141 ; 12+141=153 ; 153-58=95 </think> 95`. A key decides: what a
search at test time is given holds no result, so it cannot verify inside. Steps count, too: each
replaces one operation of the expression by its result, and the last one leaves the answer.

Which operations may be next (the same rule in Python, here, and in JAX): a product whose left side
is no product that waits, the first sum or difference once its right side is a number. So products
may be taken in any order among the terms, and sums run from left to right. A step's text names the
leftmost operation that it fits.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from random import Random

import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks import arithmetic_device, streams
from jaxzero.tasks.arithmetic_device import LIMIT, MAX_NUMBERS
from jaxzero.tasks.base import Completion, DeviceVerifier, Problem, TaskConfig, Verdict
from jaxzero.tokenizers import Tokenizer

MIN_NUMBERS = 2
LARGEST_NUMBER = 9999
MAX_PROMPT_LENGTH = 200
GOOD_PROMPT = 'a good prompt looks like "12+47*3-58"'
END_THINK = "</think>"

# Numbers, and the operators between them.
Expression = tuple[tuple[int, ...], str]


class Arithmetic:
  """The arithmetic task; see `jaxzero.tasks.base.Task` for what each method promises.

  Of the config, an expression has `numbers` numbers from 1 to `max_number`, and no result on the
  way, the answer included, lies outside 0..`max_target`.
  """

  name = "arithmetic"
  self_checkable = False
  symbols = ""
  array_size = arithmetic_device.ARRAY_SIZE

  def __init__(self, config: TaskConfig):
    """Raises UserError if the settings are impossible."""
    _check(config)
    self.config = config

  def problem(self, split: str, seed: int, index: int) -> Problem:
    """Problem `index` of the split's stream, pure in (split, seed, index).

    Splits are disjoint by expressions up to the order of factors and of terms.
    """
    config = self.config

    def candidate(rng: np.random.Generator) -> Problem | None:
      numbers = tuple(rng.integers(1, config.max_number + 1, size=config.numbers).tolist())
      operators = "".join(rng.choice(list("+-*"), size=config.numbers - 1).tolist())
      results = _results((numbers, operators))
      if not all(0 <= result <= config.max_target for result in results):
        return None
      return _problem((numbers, operators))

    settings = (
      f"numbers={config.numbers}, max_number={config.max_number}, max_target={config.max_target}"
    )
    return streams.draw(split, seed, index, candidate, lambda one: canonical(one.id), settings)

  def problems(self, split: str, seed: int, count: int) -> list[Problem]:
    """The first `count` distinct problems of the stream; UserError if it has not so many."""
    return streams.first_distinct(self.problem, split, seed, count)

  def parse(self, prompt: str) -> Problem:
    """Reads `12+47*3-58`, in any spacing, and works out its key; UserError names what is wrong."""
    return _problem(_read(prompt))

  def verify(self, problem: Problem, answer: str, steps: Sequence[str] | None = None) -> Verdict:
    """Whether the answer is the key, digit by digit; without a key nothing is right.

    Steps, where given, must be legal, too, and leave the key.
    """
    if problem.key is None:
      return Verdict(False, "there is no answer key to compare with")
    if answer != problem.key:
      return Verdict(False, "is not the key")
    if steps is not None and after_steps(_expression(problem.id), steps) != ((int(answer),), ""):
      return Verdict(False, "the steps are not a way to the result")
    return Verdict(True, "right")

  def worked_example(self, problem: Problem, seed: int = 0) -> Completion:
    """Steps in a pseudo-random legal order, pure in (problem.id, seed), and the result."""
    rng = Random(f"{problem.id} {seed}")
    left, steps = _expression(problem.id), []
    while left[1]:
      step, left = rng.choice(list(_steps(left).items()))
      steps.append(step)
    return Completion(tuple(steps), str(left[0][0]))

  def solvable(self, problem: Problem, prefix: str) -> bool:
    """Whether a right completion starts with `prefix`, the rendered text after `<think>`.

    Spaces around `;` and `</think>` do not matter.
    """
    thinking, end, answer = prefix.partition(END_THINK)
    *finished, last = thinking.split(";")
    done = [step.strip(" ") for step in ([*finished, last] if end else finished)]
    left = after_steps(_expression(problem.id), done)
    if left is None:
      return False
    numbers, operators = left
    if end:
      return not operators and str(numbers[0]).startswith(answer.lstrip(" "))
    fragment = last.strip(" ")
    if not fragment:
      return bool(operators) or not finished
    if last.endswith(" "):
      return fragment in _steps(left)
    return any(text.startswith(fragment) for text in _steps(left))

  def problem_array(self, problem: Problem) -> np.ndarray:
    """int32 [14]: whether there is a key, six numbers, six operators, the key; zero without one."""
    return arithmetic_device.problem_array(*_expression(problem.id), problem.key)

  def device_verifier(self, tokenizer: Tokenizer) -> DeviceVerifier:
    """`verify`, steps included, token by token in pure JAX."""
    return arithmetic_device.Automaton(tokenizer)


def canonical(problem_id: str) -> str:
  """The expression with factors and terms in order: what makes two problems one for the splits."""
  terms = re.findall(r"([+-]?)([0-9*]+)", problem_id)
  ordered = [(sign or "+", sorted(map(int, product.split("*")))) for sign, product in terms]
  return repr(sorted(ordered))


def after_steps(expression: Expression, steps: Sequence[str]) -> Expression | None:
  """What steps in the canonical format leave of the expression; None if one is not legal."""
  left: Expression | None = expression
  for step in steps:
    left = _steps(left).get(step)
    if left is None:
      return None
  return left


@functools.lru_cache(maxsize=8192)
def _steps(expression: Expression) -> dict[str, Expression]:
  """Every legal next step's text, and the expression that it leaves."""
  numbers, operators = expression
  steps: dict[str, Expression] = {}
  for i, operator in enumerate(operators):
    is_sum_next = i == 0 and operators[1:2] != "*"
    if not (operators[i - 1 : i] != "*" if operator == "*" else is_sum_next):
      continue
    result = _apply(numbers[i], operator, numbers[i + 1])
    after = (*numbers[:i], result, *numbers[i + 2 :]), operators[:i] + operators[i + 1 :]
    steps.setdefault(f"{numbers[i]}{operator}{numbers[i + 1]}={result}", after)
  return steps


def _apply(a: int, operator: str, b: int) -> int:
  return a + b if operator == "+" else a - b if operator == "-" else a * b


def _results(expression: Expression) -> list[int]:
  """The results of all steps, which do not depend on their order."""
  results: list[int] = []
  while expression[1]:
    step, expression = next(iter(_steps(expression).items()))
    results.append(int(step.partition("=")[2]))
  return results


def _problem(expression: Expression) -> Problem:
  numbers, operators = expression
  text = "".join(f"{a}{operator}" for a, operator in zip(numbers, [*operators, ""], strict=True))
  return Problem(id=text, prompt=text, key=str(_results(expression)[-1]))


@functools.lru_cache(maxsize=4096)
def _expression(problem_id: str) -> Expression:
  return _read(problem_id)


def _read(prompt: str) -> Expression:
  """The expression of a prompt; UserError says what was given and what is wanted."""
  shown = streams.shown(prompt)
  if len(prompt) > MAX_PROMPT_LENGTH:
    raise UserError(f"{shown} has {len(prompt)} characters, too many for a problem; {GOOD_PROMPT}")
  if not re.fullmatch(r" *[0-9]+( *[-+*] *[0-9]+)* *=? *", prompt):
    raise UserError(f"{shown} is not whole numbers with + - * between them; {GOOD_PROMPT}")
  numbers = tuple(map(int, re.findall("[0-9]+", prompt)))
  operators = "".join(re.findall("[-+*]", prompt))
  if not MIN_NUMBERS <= len(numbers) <= MAX_NUMBERS:
    raise UserError(
      f"{shown} has {len(numbers)} numbers, not {MIN_NUMBERS} to {MAX_NUMBERS}; {GOOD_PROMPT}"
    )
  for number in numbers:
    if number > LARGEST_NUMBER:
      raise UserError(f"{shown}: the number {number} is outside 0..{LARGEST_NUMBER}; {GOOD_PROMPT}")
  for result in _results((numbers, operators)):
    if not 0 <= result <= LIMIT:
      raise UserError(
        f"{shown}: the result {result} on its way is outside 0..{LIMIT}; {GOOD_PROMPT}"
      )
  return numbers, operators


def _check(config: TaskConfig) -> None:
  if not MIN_NUMBERS <= config.numbers <= MAX_NUMBERS:
    raise UserError(
      f"numbers={config.numbers} is outside {MIN_NUMBERS}..{MAX_NUMBERS}; use 3, the default"
    )
  if not 1 <= config.max_number <= LARGEST_NUMBER:
    raise UserError(f"max_number={config.max_number} is outside 1..{LARGEST_NUMBER}; use 99 or so")
  if not 1 <= config.max_target <= LIMIT:
    raise UserError(f"max_target={config.max_target} is outside 1..{LIMIT}; use 999 or so")
  if config.worked_examples < 1:
    raise UserError(f"worked_examples={config.worked_examples} must be at least 1")
