"""What is asked and how an answer is checked: the few words that every task shares."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
  import jax
  import numpy as np

  from jaxzero.tokenizers import Tokenizer

SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class Problem:
  """One question; two problems are the same exactly when their ids are.

  Attributes:
    id: canonical name; splits are disjoint by it.
    prompt: the text that the model is given.
    key: the answer key, or None where the problem alone decides (a self-checkable task), and where
      a search at test time must not see it.
    meta: anything else worth showing to a person; no verifier reads it. A mixture names its member
      here: `meta["task"]`.
  """

  id: str
  prompt: str = dataclasses.field(compare=False)
  key: str | None = dataclasses.field(default=None, compare=False)
  meta: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """A verifier's decision: right or not (score 1 or 0), and a short phrase why."""

  right: bool
  reason: str


@dataclasses.dataclass(frozen=True)
class Completion:
  """What follows a prompt: the worked steps (hidden thinking) and the final answer."""

  steps: tuple[str, ...]
  answer: str


@dataclasses.dataclass(frozen=True)
class TaskConfig:
  """Which task, how hard, and how many worked examples supervise the first model.

  Each task says in its docstring what the three sizes mean to it; the members of a mixture share
  them.

  Attributes:
    name: a name in `jaxzero.tasks.TASKS`, or several joined by "+", which is a mixture.
    numbers: how many numbers a problem has, 2 to 6.
    max_number: numbers are drawn from 1 to this one.
    max_target: targets, answers and results lie between 0 or 1 and this one.
    worked_examples: how many worked training problems the supervised start sees.
  """

  name: str = "countdown"
  numbers: int = 3
  max_number: int = 15
  max_target: int = 99
  worked_examples: int = 2000


class DeviceVerifier(Protocol):
  """`verify`, steps included, as an automaton inside jit; it reads a completion token by token.

  A state is one int32 array [..., S]; every method works on any leading shape, row by row.

  Attributes:
    state_size: S.
  """

  state_size: int

  def start(self, problem_array: jax.Array) -> jax.Array:
    """int32 [..., P], see `Task.problem_array` -> states [..., S] of which nothing is read."""
    ...

  def read(self, state: jax.Array, token: jax.Array) -> jax.Array:
    """States [..., S] and their next tokens int32 [...] -> states [..., S].

    After the end token, and once a state is lost, further tokens change no verdict.
    """
    ...

  def lost(self, state: jax.Array) -> jax.Array:
    """Bool [...]: no continuation of what was read is right; not every such state is found."""
    ...

  def right(self, state: jax.Array) -> jax.Array:
    """Bool [...]: what was read is a right completion, its end token included."""
    ...


class Task(Protocol):
  """A source of problems with an exact, total, bounded and eval-free verifier.

  Where `self_checkable` is true the problem alone decides, so a search may verify at test time, and
  `problem_array` and `device_verifier` let it do so inside `jax.jit`. Elsewhere they do so in
  self-play alone, from problems with their key.

  Attributes:
    symbols: characters that the task's texts need as tokens of their own, beside those of
      arithmetic; see `Tokenizer.train`.
    array_size: P of `problem_array`, the same for every problem.
  """

  name: str
  self_checkable: bool
  symbols: str
  array_size: int

  def problem(self, split: str, seed: int, index: int) -> Problem:
    """Problem `index` of a split's endless stream; pure in its arguments, may repeat itself."""
    ...

  def problems(self, split: str, seed: int, count: int) -> list[Problem]:
    """The stream's first `count` distinct problems; UserError where there are not so many."""
    ...

  def parse(self, prompt: str) -> Problem:
    """A problem that a person typed, its key worked out; UserError says what is wrong with it.

    `parse(problem.prompt)` and `parse(problem.id)` give the problem again.
    """
    ...

  def verify(self, problem: Problem, answer: str, steps: Sequence[str] | None = None) -> Verdict:
    """Right or wrong for any strings: never raises, never executes text, bounded time.

    Args:
      answer: the text behind the thinking.
      steps: the thinking, where it shall count, too; a task may leave it unread.
    """
    ...

  def worked_example(self, problem: Problem, seed: int = 0) -> Completion:
    """One right completion, pure in (problem.id, seed); UserError where there is none."""
    ...

  def solvable(self, problem: Problem, prefix: str) -> bool:
    """Whether some right completion begins with `prefix`, the rendered text after `<think>`."""
    ...

  def problem_array(self, problem: Problem) -> np.ndarray:
    """What `device_verifier` needs of a problem: int32 [P].

    Without the key of a problem that needs one, the verifier calls nothing right, and lost only
    what cannot be a completion of any problem.
    """
    ...

  def device_verifier(self, tokenizer: Tokenizer) -> DeviceVerifier:
    """`verify` with steps as an automaton in pure JAX; UserError if it cannot read the tokens."""
    ...
