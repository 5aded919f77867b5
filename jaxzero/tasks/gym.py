"""Tasks drawn by reasoning-gym (`pip install 'jaxzero[gym]'`), under prompts and verifiers of ours.

`gcd 760 368` is answered by `760-2*368=24 ; 368-15*24=8 ; 24-3*8=0 </think> 8`. A problem has one
right completion, which `gym_problems` works out from the prompt; the package is needed to draw
problems, never to read, check or answer one.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks import script_device, streams
from jaxzero.tasks.base import Completion, DeviceVerifier, Problem, TaskConfig, Verdict
from jaxzero.tasks.gym_problems import GYM_TASKS
from jaxzero.tokenizers import Tokenizer

MAX_PROMPT_LENGTH = 100
END_THINK = "</think>"


class Gym:
  """One data set of reasoning-gym; see `jaxzero.tasks.base.Task` for what each method promises.

  Its problems are as hard as `gym_problems` sets them: of the config only `name` and
  `worked_examples` are read.
  """

  self_checkable = False
  symbols = ""
  array_size = script_device.ARRAY_SIZE

  def __init__(self, config: TaskConfig):
    """Raises UserError if the settings are impossible."""
    if config.worked_examples < 1:
      raise UserError(f"worked_examples={config.worked_examples} must be at least 1")
    self.name, self.problems_of = config.name, GYM_TASKS[config.name]

  def problem(self, split: str, seed: int, index: int) -> Problem:
    """Problem `index` of the split's stream, pure in (split, seed, index); splits are disjoint by
    the words and numbers of prompts, in any order.

    Raises:
      UserError: reasoning-gym is not installed.
    """
    create = _package()
    spec = self.problems_of

    def candidate(rng: np.random.Generator) -> Problem | None:
      items = create(spec.dataset, seed=int(rng.integers(2**31)), size=1, **spec.settings)
      prompt = spec.prompt(items[0]["metadata"])
      try:
        return self.parse(prompt)
      except UserError:  # an item of a form that is left out
        return None

    name = f"name={self.name}"
    return streams.draw(split, seed, index, candidate, lambda one: canonical(one.id), name)

  def problems(self, split: str, seed: int, count: int) -> list[Problem]:
    """The first `count` distinct problems of the stream; UserError if it has not so many."""
    return streams.first_distinct(self.problem, split, seed, count)

  def parse(self, prompt: str) -> Problem:
    """Reads `gcd 760 368` and works out its key; UserError names what is wrong."""
    text = prompt.strip(" ")
    answer = self._work(text).answer
    return Problem(id=text, prompt=text, key=answer)

  def verify(self, problem: Problem, answer: str, steps: Sequence[str] | None = None) -> Verdict:
    """Whether the answer is the right one, character by character, and so the steps, if given."""
    if problem.key is None:
      return Verdict(False, "there is no answer key to compare with")
    right = self._work(problem.id)
    if answer != right.answer:
      return Verdict(False, "is not the answer")
    if steps is not None and tuple(steps) != right.steps:
      return Verdict(False, "the steps are not the way to the answer")
    return Verdict(True, "right")

  def worked_example(self, problem: Problem, seed: int = 0) -> Completion:
    """The right completion; there is one."""
    return self._work(problem.id)

  def solvable(self, problem: Problem, prefix: str) -> bool:
    """Whether the right completion starts with `prefix`, the rendered text after `<think>`.

    Spaces around `;` and `</think>` do not matter.
    """
    right = self._work(problem.id)
    text = f"{';'.join(right.steps)}{END_THINK}{right.answer}"
    read = re.sub(rf" *(;|{END_THINK}) *", r"\1", prefix.lstrip(" "))
    whole = read.rstrip(" ")
    return text.startswith(whole) and (
      read == whole or text[len(whole) :].startswith((";", END_THINK))
    )

  def problem_array(self, problem: Problem) -> np.ndarray:
    """int32: the right completion, packed; zeros without a key."""
    if problem.key is None:
      return script_device.problem_array(None)
    return script_device.problem_array(self._work(problem.id))

  def device_verifier(self, tokenizer: Tokenizer) -> DeviceVerifier:
    """`verify`, steps included, token by token in pure JAX."""
    return script_device.Automaton(tokenizer)

  def _work(self, prompt: str) -> Completion:
    return _worked(self.name, prompt)


def canonical(problem_id: str) -> str:
  """The words and numbers in order: what makes two problems one for the splits."""
  return " ".join(sorted(re.findall("-?[0-9]+|[a-z]+", problem_id)))


@functools.lru_cache(maxsize=4096)
def _worked(name: str, prompt: str) -> Completion:
  """The right completion; UserError says what was given and what is wanted."""
  spec, shown = GYM_TASKS[name], streams.shown(prompt)
  wanted = f"a good prompt looks like: {spec.example}"
  if len(prompt) > MAX_PROMPT_LENGTH:
    raise UserError(f"{shown} has {len(prompt)} characters, too many for a problem; {wanted}")
  found = re.fullmatch(spec.pattern, prompt, re.ASCII)
  if found is None:
    raise UserError(f"{shown} is no problem of {name}; {wanted}")
  completion = spec.work(*found.groups())
  if completion is None:
    raise UserError(f"{shown} has no whole answer; {wanted}")
  size = script_device.length(completion)
  if size > script_device.MAX_SCRIPT:
    raise UserError(
      f"{shown} takes {size} tokens to work out, over {script_device.MAX_SCRIPT}; {wanted}"
    )
  return completion


def _package():
  """The package's `create_dataset`; UserError if it is not installed."""
  try:
    from reasoning_gym import create_dataset
  except ImportError as error:
    raise UserError(
      "the gym_* tasks are drawn by reasoning-gym, which is not installed; "
      "pip install 'jaxzero[gym]'"
    ) from error
  return create_dataset
