"""Supervised pre-training on worked examples: batches as a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxzero.errors import UserError
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.batch import Batch
from jaxzero.learn.train import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
  steps: int = 900
  batch_size: int = 64
  evaluate_every: int = 50
  """Steps between validations; each also saves a checkpoint."""
  patience: int = 5
  """Validations without a better accuracy after which training stops."""
  optimizer: OptimizerConfig = OptimizerConfig()

  def check(self) -> None:
    """Raises UserError for a training that cannot run."""
    for name in ("steps", "batch_size", "evaluate_every", "patience"):
      if getattr(self, name) < 1:
        option = name.replace("_", "-")
        raise UserError(f"--supervised.{option}={getattr(self, name)} must be at least 1.")
    self.optimizer.check()


class Examples:
  """Tokenised worked examples, drawn in an order that depends on (seed, step) alone."""

  def __init__(
    self, texts: Sequence[tuple[list[int], list[int]]], length: int, num_candidates: int, seed: int
  ):
    self.texts, self.length = texts, length
    self.num_candidates, self.seed = num_candidates, seed

  def rows(self, start: int, count: int) -> list[tuple[list[int], list[int]]]:
    """Examples number start..start+count-1 of the endless stream of shuffled epochs."""
    size = len(self.texts)
    picked = []
    for number in range(start, start + count):
      epoch, index = divmod(number, size)
      picked.append(self.texts[self._order(epoch)[index]])
    return picked

  def batch(self, step: int, batch_size: int) -> Batch:
    arrays = batch_lib.empty(batch_size, self.length, self.num_candidates)
    for row, (prompt, completion) in enumerate(self.rows(step * batch_size, batch_size)):
      batch_lib.put_text(arrays, row, prompt, completion)
    return batch_lib.to_batch(arrays)

  def _order(self, epoch: int) -> np.ndarray:
    if getattr(self, "_epoch", None) != epoch:
      self._epoch = epoch
      self._permutation = np.random.default_rng((self.seed, epoch)).permutation(len(self.texts))
    return self._permutation
