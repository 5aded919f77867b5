"""Training batches from the newest rounds of self-play."""

from __future__ import annotations

from collections.abc import Sequence

import grain
import numpy as np

from jaxzero.learn import batch as batch_lib
from jaxzero.learn.batch import Batch
from jaxzero.selfplay.episode import Episode

_TRIES = 8
"""Episodes looked at for a solution: not every one holds one."""


class ReplayWindow:
  """Batches whose every row is a pure function of (seed, step, row), whoever makes it.

  The first rows are worked examples. The next are solutions that the search found where the game as
  played was lost: there it knew better than the policy. The others are games as they were played,
  the lost ones for their value alone.

  Args:
    episodes: endless and shuffled, `ReplayStore.sampler`.
    worked: (prompt, completion) token lists.
    batch_size, supervised_share, solution_share: of all hosts together.
    soft: learn the trees' improved policies at a solution's moves, not the moves alone.
  """

  def __init__(
    self,
    episodes: grain.MapDataset[Episode],
    worked: Sequence[tuple[list[int], list[int]]],
    seed: int,
    length: int,
    num_candidates: int,
    batch_size: int,
    supervised_share: float,
    solution_share: float,
    soft: bool,
  ):
    self.episodes, self.worked, self.seed = episodes, worked, seed
    self.length, self.num_candidates, self.soft = length, num_candidates, soft
    self.batch_size = batch_size
    self.supervised = int(batch_size * supervised_share)
    self.solutions = int(batch_size * solution_share)

  def batch(self, step: int, rows: Sequence[int] | np.ndarray) -> Batch:
    """These rows of step `step`'s batch, as host arrays [len(rows), ...]."""
    arrays = batch_lib.empty(len(rows), self.length, self.num_candidates)
    for i, row in enumerate(rows):
      self._put(arrays, i, step, int(row))
    return batch_lib.to_batch(arrays)

  def _put(self, arrays: dict[str, np.ndarray], i: int, step: int, row: int) -> None:
    if row < self.supervised:
      random = np.random.default_rng((self.seed, step, row))
      prompt, completion = self.worked[int(random.integers(len(self.worked)))]
      return batch_lib.put_text(arrays, i, prompt, completion)
    first = (step * self.batch_size + row) * _TRIES
    episode = self.episodes[first]
    if row < self.supervised + self.solutions:
      tries = (self.episodes[number] for number in range(first, first + _TRIES))
      taught = next((other for other in tries if _taught(other)), None)
      if taught is not None:
        return batch_lib.put_solution(arrays, i, taught, self.soft)
    return batch_lib.put_episode(arrays, i, episode, self.soft)


def _taught(episode: Episode) -> bool:
  """Whether the search found what the game as played did not."""
  return len(episode.harvested) > 0 and not episode.right
