"""Small programs from examples of what they do: `(2 5 1)=16 (3 3)=12 (4)=8`.

That is answered by `2*=(4 10 2) ; S=16 </think> x2*S`: the program piece by piece, each with its
value on the first example, then the program. The problem alone decides: a program is right if it
gives every example's output. `program_language` says what programs are; no text is ever executed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from random import Random

import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks import program_language as language
from jaxzero.tasks import programs_device, streams
from jaxzero.tasks.base import Completion, DeviceVerifier, Problem, TaskConfig, Verdict
from jaxzero.tasks.program_language import LIMIT, MAX_LENGTH, PIECES, Value, Values
from jaxzero.tasks.programs_device import MAX_EXAMPLES
from jaxzero.tokenizers import Tokenizer

MIN_PIECES, MAX_PIECES = 2, 3
MAX_PROMPT_LENGTH = 200
GOOD_PROMPT = 'a good prompt looks like "(2 5 1)=16 (3 3)=12 (4)=8"'
END_THINK = "</think>"
_VALUE = r"(?:-?[0-9]{1,3}|\((?:-?[0-9]{1,3}(?: -?[0-9]{1,3})*)?\))"
_EXAMPLE = rf"({_VALUE})=({_VALUE})"

Examples = tuple[Values, Values]  # inputs, outputs


class Programs:
  """The programs task; see `jaxzero.tasks.base.Task` for what each method promises.

  Of the config, a program has at most `numbers` pieces, 2 or 3; the numbers of the inputs lie in
  0..`max_number`, those of the outputs within +-`max_target`.
  """

  name = "programs"
  self_checkable = True
  symbols = programs_device.SYMBOLS
  array_size = programs_device.ARRAY_SIZE

  def __init__(self, config: TaskConfig):
    """Raises UserError if the settings are impossible."""
    _check(config)
    self.config = config

  def problem(self, split: str, seed: int, index: int) -> Problem:
    """Problem `index` of the split's stream: three examples of a random program, pure in
    (split, seed, index). Splits are disjoint by the set of examples."""
    config = self.config

    def candidate(rng: np.random.Generator) -> Problem | None:
      inputs: Values = tuple(
        tuple(rng.integers(0, config.max_number + 1, size=rng.integers(1, 4)).tolist())
        for _ in range(MAX_EXAMPLES)
      )
      values = inputs
      for _ in range(rng.integers(1, config.numbers + 1)):
        values = _longer(values, rng)
      if len(set(values)) == 1 or values == inputs or len(set(inputs)) < MAX_EXAMPLES:
        return None
      if any(abs(n) > config.max_target for value in values for n in _numbers(value)):
        return None
      return _problem((inputs, values))

    settings = (
      f"numbers={config.numbers}, max_number={config.max_number}, max_target={config.max_target}"
    )
    return streams.draw(split, seed, index, candidate, lambda one: canonical(one.id), settings)

  def problems(self, split: str, seed: int, count: int) -> list[Problem]:
    """The first `count` distinct problems of the stream; UserError if it has not so many."""
    return streams.first_distinct(self.problem, split, seed, count)

  def parse(self, prompt: str) -> Problem:
    """Reads one to three examples `(2 5 1)=16`; UserError names what is wrong."""
    return _problem(_read(prompt))

  def verify(self, problem: Problem, answer: str, steps: Sequence[str] | None = None) -> Verdict:
    """Whether the answer is a program that gives every example's output.

    Steps, where given, must be legal, too, and give the outputs; they may be another program's.
    """
    inputs, outputs = _examples(problem.id)
    values = language.run(answer, inputs, self.config.numbers)
    if values is None:
      return Verdict(False, "no program with a value on every example")
    if values != outputs:
      return Verdict(False, f"gives {' '.join(map(language.render, values))}")
    if steps is not None and self._after_steps(inputs, steps) != outputs:
      return Verdict(False, "the steps do not give the outputs")
    return Verdict(True, "right")

  def worked_example(self, problem: Problem, seed: int = 0) -> Completion:
    """A shortest program, pure in (problem.id, seed); UserError if there is none."""
    values, outputs = _examples(problem.id)
    rng, limit = Random(f"{problem.id} {seed}"), self.config.numbers
    pieces = language.continuation(values, outputs, limit, rng)
    if pieces is None:
      raise UserError(f"no program of up to {limit} pieces gives {problem.id}; check the examples")
    steps = []
    for piece in pieces:
      values = tuple(language.apply(piece, value) for value in values)  # type: ignore[misc]
      steps.append(_step(piece, values))
    return Completion(tuple(steps), "x" + "".join(pieces))

  def solvable(self, problem: Problem, prefix: str) -> bool:
    """Whether a right completion starts with `prefix`, the rendered text after `<think>`.

    Spaces around `;` and `</think>` do not matter.
    """
    inputs, outputs = _examples(problem.id)
    thinking, end, answer = prefix.partition(END_THINK)
    *finished, last = thinking.split(";")
    done = [step.strip(" ") for step in ([*finished, last] if end else finished)]
    values = self._after_steps(inputs, done if done != [""] else [])
    if values is None:
      return False
    if end:
      return values == outputs and self._answer_extends(answer.lstrip(" "), inputs, outputs)
    fragment, left = last.lstrip(" "), self.config.numbers - len(finished)
    if not fragment and not finished:
      return language.reaches(values, outputs, left)
    return left > 0 and any(
      new is not None
      and ((step := _step(piece, new)).startswith(fragment) or step == fragment.rstrip(" "))
      and language.reaches(new, outputs, left - 1)
      for piece in PIECES
      if (piece + "=").startswith(fragment[: len(piece) + 1])
      for new in [language.after(piece, values)]
    )

  def problem_array(self, problem: Problem) -> np.ndarray:
    """int32 [37]: three examples' inputs and outputs; the first one again where there are fewer."""
    return programs_device.problem_array(*_examples(problem.id))

  def device_verifier(self, tokenizer: Tokenizer) -> DeviceVerifier:
    """`verify`, steps included, token by token in pure JAX."""
    return programs_device.Automaton(tokenizer, self.config.numbers)

  def _after_steps(self, inputs: Values, steps: Sequence[str]) -> Values | None:
    """The values behind steps in the canonical format; None if one is not legal."""
    if len(steps) > self.config.numbers:
      return None
    values = inputs
    for step in steps:
      piece = step.partition("=")[0]
      after = language.after(piece, values) if piece in PIECES else None
      if after is None or step != _step(piece, after):
        return None
      values = after
    return values

  def _answer_extends(self, prefix: str, inputs: Values, outputs: Values) -> bool:
    """Whether some right program starts with `prefix`."""
    limit = self.config.numbers
    if not prefix:
      return language.reaches(inputs, outputs, limit)
    whole = prefix.rstrip("0123456789")
    digit = prefix[len(whole) :]
    values = language.run(whole, inputs, limit)
    if values is None or len(digit) > 1:
      return False
    used = sum(char in language.ON_LISTS + language.WITH_DIGIT for char in whole)
    if not digit:
      return language.reaches(values, outputs, limit - used)
    followers = [language.after(digit + op, values) for op in language.WITH_DIGIT]
    return used < limit and any(
      new is not None and language.reaches(new, outputs, limit - used - 1) for new in followers
    )


def canonical(problem_id: str) -> str:
  """The examples in order: what makes two problems one for the splits."""
  return " ".join(sorted("=".join(example) for example in re.findall(_EXAMPLE, problem_id)))


def _longer(values: Values, rng: np.random.Generator) -> Values:
  """Values behind one more random piece, which has values and, if it can, changes them; every
  operator is as likely as every other, whether it takes a digit or not."""
  for op in rng.permutation(list(language.ON_LISTS + language.WITH_DIGIT)).tolist():
    digit = str(rng.integers(10)) if op in language.WITH_DIGIT else ""
    after = language.after(digit + op, values)
    if after is not None and after != values:
      return after
  return values


def _step(piece: str, values: Values) -> str:
  return f"{piece}={language.render(values[0])}"


def _numbers(value: Value) -> tuple[int, ...]:
  return value if isinstance(value, tuple) else (value,)


def _problem(examples: Examples) -> Problem:
  pairs = zip(*(map(language.render, side) for side in examples), strict=True)
  text = " ".join(map("=".join, pairs))
  return Problem(id=text, prompt=text)


@functools.lru_cache(maxsize=4096)
def _examples(problem_id: str) -> Examples:
  return _read(problem_id)


def _read(prompt: str) -> Examples:
  """Inputs and outputs of a prompt; UserError says what was given and what is wanted."""
  shown = streams.shown(prompt)
  if len(prompt) > MAX_PROMPT_LENGTH:
    raise UserError(f"{shown} has {len(prompt)} characters, too many for a problem; {GOOD_PROMPT}")
  if not re.fullmatch(rf" *{_EXAMPLE}(?: +{_EXAMPLE})* *", prompt):
    raise UserError(
      f"{shown} is not examples of numbers of up to three digits and lists of them; {GOOD_PROMPT}"
    )
  pairs = [(_value(a), _value(b)) for a, b in re.findall(_EXAMPLE, prompt)]
  if len(pairs) > MAX_EXAMPLES:
    raise UserError(f"{shown} has {len(pairs)} examples, over {MAX_EXAMPLES}; {GOOD_PROMPT}")
  if any(not isinstance(given, tuple) for given, _ in pairs):
    raise UserError(f"{shown} has an input that is no list; {GOOD_PROMPT}")
  for value in (value for pair in pairs for value in pair):
    if len(_numbers(value)) > MAX_LENGTH:
      raise UserError(f"{shown} has a list of over {MAX_LENGTH} numbers; {GOOD_PROMPT}")
  inputs, outputs = zip(*pairs, strict=True)
  return inputs, outputs


def _value(text: str) -> Value:
  numbers = tuple(map(int, re.findall("-?[0-9]+", text)))
  return numbers if text.startswith("(") else numbers[0]


def _check(config: TaskConfig) -> None:
  if not MIN_PIECES <= config.numbers <= MAX_PIECES:
    raise UserError(
      f"numbers={config.numbers} pieces of a program are outside {MIN_PIECES}..{MAX_PIECES}; use 2"
    )
  if not 1 <= config.max_number <= LIMIT:
    raise UserError(f"max_number={config.max_number} is outside 1..{LIMIT}; use 9 or so")
  if not 1 <= config.max_target <= LIMIT:
    raise UserError(f"max_target={config.max_target} is outside 1..{LIMIT}; use 99 or so")
  if config.worked_examples < 1:
    raise UserError(f"worked_examples={config.worked_examples} must be at least 1")
