"""The rules of the game that is searched: where it ends, and what an end is worth."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import chex
import jax
import jax.numpy as jnp

from jaxzero.tasks.base import DeviceVerifier


@chex.dataclass(frozen=True)
class Ruling:
  """What a token did; [...] shaped like the tokens."""

  judge: jax.Array  # [..., S] int32, the verifier's state
  terminal: jax.Array  # bool
  right: jax.Array  # bool
  reward: jax.Array  # float32, on the edge
  discount: jax.Array  # float32, on the edge


class Rules(Protocol):
  """The verdicts that a search may hear."""

  @property
  def discounted(self) -> bool:
    """Whether edges above a terminal may carry rewards or discounts."""
    ...

  def play(self, judge: jax.Array, token: jax.Array, room: jax.Array) -> Ruling:
    """The token [...] played where the verifier stood at judge [..., S], with room [...] tokens
    left, this one included."""
    ...


@dataclasses.dataclass(frozen=True)
class Verified:
  """The verifier watches: a game ends where it is won, first known to be lost, or out of room."""

  verifier: DeviceVerifier
  end_id: int
  discounted: bool = False

  def play(self, judge: jax.Array, token: jax.Array, room: jax.Array) -> Ruling:
    judge = self.verifier.read(judge, token)
    right = self.verifier.right(judge)
    terminal = (token == self.end_id) | self.verifier.lost(judge) | (room <= 1)
    return Ruling(
      judge=judge,
      terminal=terminal,
      right=right,
      reward=right.astype(jnp.float32),
      discount=1.0 - terminal,
    )


@dataclasses.dataclass(frozen=True)
class Unverified:
  """Nobody watches: a game ends with its end token, and is worth what the value head says of it."""

  end_id: int
  discounted: bool = False

  def play(self, judge: jax.Array, token: jax.Array, room: jax.Array) -> Ruling:
    return Ruling(
      judge=judge,
      terminal=(token == self.end_id) | (room <= 1),
      right=jnp.zeros(token.shape, bool),
      reward=jnp.zeros(token.shape),
      discount=jnp.ones(token.shape),
    )


def rules_of(verifier: DeviceVerifier, end_id: int, verify_inside: bool) -> Rules:
  """The rules of a search that hears the verifier, or does not."""
  return Verified(verifier, end_id) if verify_inside else Unverified(end_id)
