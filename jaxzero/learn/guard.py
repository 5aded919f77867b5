"""Stops a training whose loss is no number or leaps, naming the batch it happened on."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jaxzero.errors import UserError


@dataclasses.dataclass(frozen=True)
class GuardConfig:
  spike_factor: float = 8.0
  """A loss over so many times the median of the last `window` losses stops the run. 0: only a loss
  or gradient that is no finite number does."""
  window: int = 50
  floor: float = 0.25
  """The median counts as this at least: of examples known by heart every loss is near zero, and one
  odd batch many times that."""

  def check(self) -> None:
    """Raises UserError for a guard that would stop every run or none."""
    if self.spike_factor != 0 and not 1 < self.spike_factor < math.inf:
      raise UserError(
        f"spike_factor={self.spike_factor} must be over 1, or 0 for no test of spikes."
      )
    if self.window < 1 or not 0 <= self.floor < math.inf:
      raise UserError(f"window={self.window} must be at least 1 and floor={self.floor} at least 0.")


class LossGuard:
  """Watches the losses of one training.

  Args:
    losses: what `to_list` of a checkpoint's guard gave, to go on as it would have.
  """

  def __init__(self, config: GuardConfig, losses: Sequence[float] = ()):
    self._config = config
    self._losses = collections.deque(losses, maxlen=config.window)

  def to_list(self) -> list[float]:
    """All of the guard's state, for a checkpoint's meta: at most `window` losses."""
    return list(self._losses)

  def check(
    self, step: int, loss: float, grad_norm: float, batch_hash: int, checkpoint: str
  ) -> None:
    """Takes in a step's figures.

    Args:
      batch_hash: `batch_hash` of the step's whole batch.
      checkpoint: the last good one, in words for the user.

    Raises:
      UserError: the loss or the gradient's norm is NaN or infinite; or `window` losses are known
        and this one is over `spike_factor` times their median.
    """
    config = self._config
    for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
      if not math.isfinite(value):
        raise UserError(
          f"the {name} of step {step} is {value}, on batch {to_hex(batch_hash)}; the last good "
          f"checkpoint is {checkpoint}, and the same command retries from it; if it stops here "
          "again, lower the learning rate."
        )
    if config.spike_factor and len(self._losses) == config.window:
      median = statistics.median(self._losses)
      if loss > config.spike_factor * max(median, config.floor):
        raise UserError(
          f"the loss of step {step} is {loss:.4g}, over spike_factor={config.spike_factor:g} times "
          f"the median {median:.4g} of the last {config.window} (taken as {config.floor:g} at "
          f"least), on batch {to_hex(batch_hash)}; the last good checkpoint is {checkpoint}, and "
          "the same command retries from it; if it stops here again, lower the learning rate or "
          "raise spike_factor (0 for no test)."
        )
    self._losses.append(loss)


def batch_hash(arrays: Mapping[str, np.ndarray], rows: Sequence[int] | np.ndarray) -> int:
  """A 64-bit hash of a batch or of one host's part of it; the parts' are put together by `combine`.

  The sum over rows of a hash of the row's index and bytes, so it does not depend on how many hosts
  the batch is spread over, nor on the order in which its rows are given.

  Args:
    arrays: the fields, in the batch's order; [n, ...] of any type.
    rows: [n] the rows' indices in the whole batch.
  """
  n = len(rows)
  fields = [np.asarray(rows, "<u8"), *arrays.values()]
  columns = [np.ascontiguousarray(field).reshape(n, -1).view(np.uint8) for field in fields]
  whole = np.concatenate(columns, axis=1)
  return combine(int.from_bytes(hashlib.sha256(row).digest()[:8], "little") for row in whole)


def combine(hashes: Iterable[int]) -> int:
  """The hash of a whole batch from those of its parts, in any order.

  jax would cut an array of them to 32 bits on its way between hosts: send them as bytes.
  """
  return sum(hashes) % 2**64


def to_hex(batch_hash: int) -> str:
  """As a batch is named in messages and metrics: 16 digits."""
  return f"{batch_hash:016x}"
