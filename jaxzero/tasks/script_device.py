"""The verifier in pure JAX of a task with one right completion: an automaton that follows it.

The completion is part of the problem's array, four characters an int32; the first token that is
another loses the game. Given none, it judges the form alone: whether the characters could be steps
and an answer of anything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.tasks.base import Completion
from jaxzero.tasks.characters import Characters
from jaxzero.tokenizers import Tokenizer

ALPHABET = "0123456789+-*/="
STEP, END_THINK, END = range(len(ALPHABET), len(ALPHABET) + 3)
MAX_SCRIPT = 200  # tokens of a completion
_WORDS = MAX_SCRIPT // 4
_SIZE, _AT, _STAGE = _WORDS, _WORDS + 1, _WORDS + 2
ARRAY_SIZE = _WORDS + 1
# UNDECIDED: ended well formed, with nothing to follow.
THINKING, ANSWER, RIGHT, LOST, UNDECIDED = range(5)


class Automaton:
  """A `DeviceVerifier` that calls right exactly the completion in the problem's array."""

  state_size: int = ARRAY_SIZE + 2

  def __init__(self, tokenizer: Tokenizer):
    """Raises UserError if a token spells several characters of a step."""
    self._characters = Characters(tokenizer, ALPHABET)

  def start(self, problem_array: jax.Array) -> jax.Array:
    """`problem_array`s int32 [..., P] -> states int32 [..., S] before the first token."""
    fresh = jnp.zeros((*problem_array.shape[:-1], 2), jnp.int32)
    return jnp.concatenate([problem_array, fresh], axis=-1)

  def read(self, state: jax.Array, token: jax.Array) -> jax.Array:
    """States [..., S] after one more token [...]; any token id will do."""
    code = self._characters.code(token)
    at, stage, size = state[..., _AT], state[..., _STAGE], state[..., _SIZE]
    word = jnp.sum(jnp.where(jnp.arange(_WORDS) == at[..., None] // 4, state[..., :_WORDS], 0), -1)
    expected = (word >> (8 * (at % 4))) & 255
    thinking = stage == THINKING
    of_form = (code < STEP) | jnp.where(thinking, (code == STEP) | (code == END_THINK), code == END)
    ok = jnp.where(size > 0, code == expected, of_form)
    ended = jnp.where(size > 0, RIGHT, UNDECIDED)
    following = jnp.where(code == END_THINK, ANSWER, jnp.where(code == END, ended, stage))
    following = jnp.where(ok, following, LOST)
    playing = thinking | (stage == ANSWER)
    new = state.at[..., _STAGE].set(jnp.where(playing, following, stage))
    return new.at[..., _AT].set(jnp.minimum(at + 1, MAX_SCRIPT - 1))

  def lost(self, state: jax.Array) -> jax.Array:
    """Bool [...]: no continuation of what was read is right."""
    return state[..., _STAGE] == LOST

  def right(self, state: jax.Array) -> jax.Array:
    """Bool [...]: what was read is the right completion, and whatever may follow its end token."""
    return state[..., _STAGE] == RIGHT


def length(completion: Completion) -> int:
  """The tokens of a completion, its end included."""
  return len(_codes(completion))


def problem_array(completion: Completion | None) -> np.ndarray:
  """int32 [P]: the completion's codes, packed, and how many; zeros if there is none to follow."""
  codes = np.zeros(MAX_SCRIPT, np.int32)
  known = [] if completion is None else _codes(completion)
  codes[: len(known)] = known
  packed = (codes.reshape(_WORDS, 4) << (8 * np.arange(4))).sum(axis=1)
  return np.asarray([*packed, len(known)], np.int32)


def _codes(completion: Completion) -> list[int]:
  codes: list[int] = []
  for i, step in enumerate(completion.steps):
    codes += [STEP] * (i > 0) + [ALPHABET.index(char) for char in step]
  return [*codes, END_THINK, *map(ALPHABET.index, completion.answer), END]
