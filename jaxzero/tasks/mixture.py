"""Several tasks at once: `name="countdown+arithmetic"`, the problems drawn from each in turn.

A problem's id is its member's behind the member's name, its prompt is the member's own, and
`meta["task"]` names the member. A mixture verifies inside a test-time search only where each of its
members may: the strictest one decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks import streams
from jaxzero.tasks.base import Completion, DeviceVerifier, Problem, Task, Verdict
from jaxzero.tokenizers import Tokenizer

SEPARATOR = ": "


class Mixture:
  """Tasks in equal shares; see `jaxzero.tasks.base.Task` for what each method promises.

  All members read the same config, each in its own way.
  """

  def __init__(self, members: Sequence[Task]):
    """Members with names of their own, at least two; UserError otherwise."""
    names = [member.name for member in members]
    self.name = "+".join(names)
    if len(set(names)) < max(2, len(names)):
      raise UserError(f"a mixture needs two tasks or more, each once; {self.name!r} is none")
    self.members = {member.name: member for member in members}
    self.self_checkable = all(member.self_checkable for member in members)
    self.array_size = 1 + max(member.array_size for member in members)
    self.symbols = "".join(dict.fromkeys("".join(member.symbols for member in members)))

  def problem(self, split: str, seed: int, index: int) -> Problem:
    """Problem `index` of the split's stream: the members' streams in turn."""
    streams.generator(split, seed, index)  # refuses what no member may be asked
    names = list(self.members)
    name = names[index % len(names)]
    return _named(name, self.members[name].problem(split, seed, index // len(names)))

  def problems(self, split: str, seed: int, count: int) -> list[Problem]:
    """The first `count` distinct problems of the stream; UserError if it has not so many."""
    return streams.first_distinct(self.problem, split, seed, count)

  def parse(self, prompt: str) -> Problem:
    """The problem of the first member that can read the prompt; one with a member's name and a
    colon before it is read by that member. UserError says why none could."""
    name, separator, rest = prompt.strip(" ").partition(SEPARATOR)
    if separator and name in self.members:
      return _named(name, self.members[name].parse(rest))
    reasons = []
    for name, member in self.members.items():
      try:
        return _named(name, member.parse(prompt))
      except UserError as error:
        reasons.append(f"{name}: {error}")
    raise UserError("no task of the mixture reads this prompt: " + "; ".join(reasons))

  def verify(self, problem: Problem, answer: str, steps: Sequence[str] | None = None) -> Verdict:
    """The member's verdict."""
    member, own = self._member(problem)
    return member.verify(own, answer, steps)

  def worked_example(self, problem: Problem, seed: int = 0) -> Completion:
    """The member's worked example."""
    member, own = self._member(problem)
    return member.worked_example(own, seed)

  def solvable(self, problem: Problem, prefix: str) -> bool:
    """Whether some completion that is right for the member begins with `prefix`."""
    member, own = self._member(problem)
    return member.solvable(own, prefix)

  def problem_array(self, problem: Problem) -> np.ndarray:
    """int32 [P]: the member's number and its own array, padded with zeros to the largest."""
    member, own = self._member(problem)
    array = np.zeros(self.array_size, np.int32)
    array[0] = list(self.members).index(member.name)
    array[1 : 1 + member.array_size] = member.problem_array(own)
    return array

  def device_verifier(self, tokenizer: Tokenizer) -> DeviceVerifier:
    """The members' verifiers side by side; the problem says which one is heard."""
    sizes = [member.array_size for member in self.members.values()]
    verifiers = [member.device_verifier(tokenizer) for member in self.members.values()]
    return Switch(verifiers, sizes)

  def _member(self, problem: Problem) -> tuple[Task, Problem]:
    name, _, own = problem.id.partition(SEPARATOR)
    return self.members[name], dataclasses.replace(problem, id=own)


class Switch:
  """A `DeviceVerifier` whose states are [number of the member, the member's state, zeros]."""

  def __init__(self, verifiers: Sequence[DeviceVerifier], array_sizes: Sequence[int]):
    self._verifiers, self._array_sizes = verifiers, array_sizes
    self.state_size = 1 + max(verifier.state_size for verifier in verifiers)

  def start(self, problem_array: jax.Array) -> jax.Array:
    """`problem_array`s int32 [..., P] -> states int32 [..., S] before the first token."""
    number = problem_array[..., :1]
    states = [
      self._padded(verifier.start(problem_array[..., 1 : 1 + size]))
      for verifier, size in zip(self._verifiers, self._array_sizes, strict=True)
    ]
    return jnp.concatenate([number, _heard(number, states)], axis=-1)

  def read(self, state: jax.Array, token: jax.Array) -> jax.Array:
    """States [..., S] after one more token [...]; any token id will do."""
    number = state[..., :1]
    states = [self._padded(verifier.read(own, token)) for verifier, own in self._each(state)]
    return jnp.concatenate([number, _heard(number, states)], axis=-1)

  def lost(self, state: jax.Array) -> jax.Array:
    """Bool [...]: no continuation of what was read is right."""
    return _heard(state[..., 0], [v.lost(own) for v, own in self._each(state)])

  def right(self, state: jax.Array) -> jax.Array:
    """Bool [...]: what was read is a right completion, and whatever may follow its end token."""
    return _heard(state[..., 0], [v.right(own) for v, own in self._each(state)])

  def _each(self, state: jax.Array) -> list[tuple[DeviceVerifier, jax.Array]]:
    """Every verifier with the state as if it were its own."""
    return [(v, state[..., 1 : 1 + v.state_size]) for v in self._verifiers]

  def _padded(self, state: jax.Array) -> jax.Array:
    missing = self.state_size - 1 - state.shape[-1]
    return jnp.pad(state, [(0, 0)] * (state.ndim - 1) + [(0, missing)])


def _heard(number: jax.Array, of_each: Sequence[jax.Array]) -> jax.Array:
  """Of one array for every member that of the member with this number."""
  chosen = of_each[0]
  for i, one in enumerate(of_each[1:], 1):
    chosen = jnp.where(number == i, one, chosen)
  return chosen


def _named(name: str, problem: Problem) -> Problem:
  meta = {**problem.meta, "task": name}
  return dataclasses.replace(problem, id=f"{name}{SEPARATOR}{problem.id}", meta=meta)
