"""Supervised pre-training on worked examples: batches as a pure function of (seed, step)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxzero.errors import UserError
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.batch import Batch
from jaxzero.learn.epochs import Epochs
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
    self.texts = Epochs(texts, (seed,))
    self.length, self.num_candidates = length, num_candidates

  def batch(
    self, step: int, batch_size: int, rows: Sequence[int] | np.ndarray | None = None
  ) -> Batch:
    """These rows (default: all) of step `step`'s batch, as host arrays [len(rows), ...]."""
    rows = range(batch_size) if rows is None else rows
    arrays = batch_lib.empty(len(rows), self.length, self.num_candidates)
    for i, row in enumerate(rows):
      batch_lib.put_text(arrays, i, *self.texts[step * batch_size + int(row)])
    return batch_lib.to_batch(arrays)
