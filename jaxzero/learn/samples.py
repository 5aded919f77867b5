"""Training batches from independent samples of the policy: expert iteration and GRPO.

An episode's tree holds the samples of one problem with their prefixes shared; an end was drawn as
often as it was visited.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxzero.learn import batch as batch_lib
from jaxzero.learn.batch import Batch
from jaxzero.learn.epochs import Epochs
from jaxzero.search.record import NO_END, RIGHT, path_to
from jaxzero.selfplay.episode import Episode


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
  """A completion of C tokens, and how it is learned from."""

  prompt: np.ndarray  # [P] int32
  completion: np.ndarray  # [C] int32
  old_log_p: np.ndarray  # [C] float32: by the policy that drew it
  weight: float = 0.0  # of imitating it
  advantage: float = 0.0  # of having drawn it


def right_samples(episode: Episode, most: int) -> list[Sample]:
  """The first `most` different right completions: what expert iteration imitates.

  A cut-off keeps easy problems, which have many, from crowding out the others (Singh et al. 2023).
  """
  right = [end for end in _ends(episode) if episode.tree.verdict[end] == RIGHT]
  return [dataclasses.replace(_sample(episode, end), weight=1.0) for end in right[:most]]


def group(episode: Episode, scale_by_std: bool) -> list[Sample]:
  """A problem's samples with their advantages: reward minus the group's mean reward.

  A completion that was drawn several times comes once, with so many times its advantage: the same
  sum. A group whose rewards are all equal has no advantages, and gives nothing.

  Args:
    scale_by_std: divide by the group's standard deviation, as Shao et al. (2024, sec. 4.1.2) do. It
      gives more weight to problems that are nearly always or nearly never solved, a bias that Liu
      et al. (2025, "Dr. GRPO") remove.
  """
  ends = _ends(episode)
  reward = np.array([episode.tree.verdict[end] == RIGHT for end in ends], float)
  if len(set(reward)) < 2:
    return []
  drawn = episode.tree.visits[ends]
  mean = np.average(reward, weights=drawn)
  advantage = (reward - mean) * drawn / (np.sqrt(mean * (1.0 - mean)) if scale_by_std else 1.0)
  return [
    dataclasses.replace(_sample(episode, end), advantage=float(a))
    for end, a in zip(ends, advantage, strict=True)
  ]


class SampleWindow:
  """Batches whose every row is a pure function of (seed, step, row), whoever makes it.

  The first rows are worked examples, the others samples in shuffled epochs. Where there is no
  sample to learn from, those rows are empty.

  Args:
    samples: all there are.
    worked: (prompt, completion) token lists.
    first_step: where their first epoch begins.
    batch_size, supervised_share: of all hosts together.
  """

  def __init__(
    self,
    samples: Sequence[Sample],
    worked: Sequence[tuple[list[int], list[int]]],
    seed: tuple[int, ...],
    first_step: int,
    length: int,
    batch_size: int,
    supervised_share: float,
  ):
    self.samples, self.worked = Epochs(samples, (*seed, 0)), Epochs(worked, (*seed, 1))
    self.first_step, self.length, self.batch_size = first_step, length, batch_size
    self.supervised = int(batch_size * supervised_share)

  def batch(self, step: int, rows: Sequence[int] | np.ndarray) -> Batch:
    """These rows of step `step`'s batch, as host arrays [len(rows), ...]."""
    arrays = batch_lib.empty(len(rows), self.length, num_candidates=1)
    done, rest = step - self.first_step, self.batch_size - self.supervised
    for i, row in enumerate(map(int, rows)):
      own = row - self.supervised
      if own < 0:
        batch_lib.put_text(arrays, i, *self.worked[done * self.supervised + row])
      elif len(self.samples):
        put(arrays, i, self.samples[done * rest + own])
    return batch_lib.to_batch(arrays)


def put(arrays: dict[str, np.ndarray], row: int, sample: Sample) -> None:
  """Writes a sample to learn from at its every token."""
  batch_lib.put_text(arrays, row, sample.prompt, sample.completion, sample.weight)
  first = len(sample.prompt) - 1
  moves = slice(first, first + len(sample.completion))
  arrays["advantage"][row, moves] = sample.advantage
  arrays["old_log_p"][row, moves] = sample.old_log_p


def _ends(episode: Episode) -> np.ndarray:
  """The nodes where samples ended, in the order in which they were first drawn."""
  return np.flatnonzero(episode.tree.verdict != NO_END)


def _sample(episode: Episode, end: int) -> Sample:
  path = path_to(episode.tree, end)
  return Sample(
    prompt=episode.prompt_tokens,
    completion=episode.tree.token[path],
    old_log_p=episode.tree.prior[path],
  )
