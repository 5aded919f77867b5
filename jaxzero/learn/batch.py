"""The one training batch: hard targets (text to imitate), soft targets (a search's improved
policy), advantages (samples to make likelier or less so) and value targets, each with weights of
its own, so that any mixture is one batch."""

from __future__ import annotations

from collections.abc import Sequence

import chex
import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.selfplay.episode import Episode


@chex.dataclass(frozen=True)
class Batch:
  """B sequences of T positions; position t predicts token t + 1. A candidates a move."""

  tokens: jax.Array  # [B, T] int32, prompt and completion, padded on the right
  length: jax.Array  # [B] int32
  hard_weight: jax.Array  # [B, T] float32: weight of log p(tokens[t + 1]) at t
  candidates: jax.Array  # [B, T, A] int32, -1 where there is no soft target
  soft_target: jax.Array  # [B, T, A + 1] float32, last the rest of the vocabulary
  soft_weight: jax.Array  # [B, T] float32
  value_target: jax.Array  # [B, T] float32 in [0, 1]: P(right) after the token at t
  value_weight: jax.Array  # [B, T] float32
  advantage: jax.Array  # [B, T] float32, of having drawn tokens[t + 1] at t; 0: not learned from
  old_log_p: jax.Array  # [B, T] float32, log p(tokens[t + 1]) of the policy that drew it


def empty(rows: int, length: int, num_candidates: int) -> dict[str, np.ndarray]:
  """Zeroed host arrays of a Batch."""
  return {
    "tokens": np.zeros((rows, length), np.int32),
    "length": np.zeros(rows, np.int32),
    "hard_weight": np.zeros((rows, length), np.float32),
    "candidates": np.full((rows, length, num_candidates), -1, np.int32),
    "soft_target": np.zeros((rows, length, num_candidates + 1), np.float32),
    "soft_weight": np.zeros((rows, length), np.float32),
    "value_target": np.zeros((rows, length), np.float32),
    "value_weight": np.zeros((rows, length), np.float32),
    "advantage": np.zeros((rows, length), np.float32),
    "old_log_p": np.zeros((rows, length), np.float32),
  }


def put_text(
  arrays: dict[str, np.ndarray],
  row: int,
  prompt: Sequence[int] | np.ndarray,
  completion: Sequence[int] | np.ndarray,
  weight: float = 1.0,
) -> None:
  """Writes a completion to imitate: hard targets on its tokens, no value target."""
  P, C = len(prompt), len(completion)
  if arrays["tokens"].shape[1] < P + C:
    raise UserError(
      f"an example of {P + C} tokens does not fit the context of {arrays['tokens'].shape[1]}; "
      "raise --self-play.play.max-tokens or shorten the problem."
    )
  arrays["tokens"][row, : P + C] = [*prompt, *completion]
  arrays["length"][row] = P + C
  arrays["hard_weight"][row, P - 1 : P + C - 1] = weight


def put_episode(
  arrays: dict[str, np.ndarray], row: int, episode: Episode, soft: bool = False
) -> None:
  """Writes a self-played game as it was played: its outcome as value, its policy if it was won.

  A truncated episode keeps its weights at zero: its outcome is not known.
  """
  if episode.right:
    put_solution(arrays, row, episode, soft)
  else:
    put_text(arrays, row, episode.prompt_tokens, episode.tokens, weight=0.0)
  if episode.truncated:
    return
  P, C = len(episode.prompt_tokens), len(episode.tokens)
  # The last token's own position, too: there a search asks what an end is worth.
  arrays["value_target"][row, P - 1 : P + C] = episode.right
  arrays["value_weight"][row, P - 1 : P + C] = 1.0


def put_solution(
  arrays: dict[str, np.ndarray], row: int, episode: Episode, soft: bool = False
) -> None:
  """Writes the verified completion that the search found, without a value target.

  soft: learn the tree's improved policies at its moves, not the moves alone.
  """
  put_text(arrays, row, episode.prompt_tokens, episode.harvested, weight=0.0 if soft else 1.0)
  if soft:
    P, H = len(episode.prompt_tokens), len(episode.harvested)
    moves = slice(P - 1, P + H - 1)
    arrays["candidates"][row, moves] = episode.candidates
    arrays["soft_target"][row, moves] = episode.weights
    arrays["soft_weight"][row, moves] = 1.0


def to_batch(arrays: dict[str, np.ndarray]) -> Batch:
  return Batch(**arrays)
