"""An endless sequence of shuffled epochs that depends on its seed alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Epochs(Generic[T]):
  """Item i, for any i >= 0; every `len(items)` of them each comes once, in an order of its own."""

  def __init__(self, items: Sequence[T], seed: tuple[int, ...]):
    self.items, self.seed = items, seed
    self._epoch = -1
    self._order = np.empty(0, int)

  def __len__(self) -> int:
    """Items of one epoch."""
    return len(self.items)

  def __getitem__(self, number: int) -> T:
    epoch, index = divmod(number, len(self.items))
    if epoch != self._epoch:
      self._epoch = epoch
      self._order = np.random.default_rng((*self.seed, epoch)).permutation(len(self.items))
    return self.items[self._order[index]]
