"""Stops a training whose loss is no number or leaps, naming the batch it happened on."""

from __future__ import annotations

import collections
import hashlib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxzero.errors import UserError

WINDOW = 50
"""Losses that a new one is compared with."""
FLOOR = 0.25
"""Their median counts as this at least: of examples known by heart every loss is near zero, and one
odd batch many times that."""


def check_spike_factor(spike_factor: float) -> None:
  """Raises UserError for one that would stop every run or none."""
  if spike_factor != 0 and not 1 < spike_factor < math.inf:
    raise UserError(f"spike_factor={spike_factor} must be over 1, or 0 for no test of spikes.")


class LossGuard:
  """Watches the losses of one training.

  Args:
    spike_factor: a loss over so many times the median of the last `window` losses stops the run. 0:
      only a loss or gradient that is no finite number does.
    losses: what `to_list` of a checkpoint's guard gave, to go on as it would have.
  """

  def __init__(
    self,
    spike_factor: float,
    losses: Sequence[float] = (),
    window: int = WINDOW,
    floor: float = FLOOR,
  ):
    self._factor, self._window, self._floor = spike_factor, window, floor
    self._losses = collections.deque(losses, maxlen=window)

  def to_list(self) -> list[float]:
    """All of the guard's state, for a checkpoint's meta: at most `window` losses."""
    return list(self._losses)

  def check(
    self,
    step: int,
    loss: float,
    grad_norm: float,
    batch_hash: Callable[[], int],
    checkpoint: Callable[[], str],
  ) -> None:
    """Takes in a step's figures.

    Args:
      batch_hash: gives `batch_hash` of the step's whole batch; asked only to tell it.
      checkpoint: gives the last good one, in words for the user.

    Raises:
      UserError: the loss or the gradient's norm is NaN or infinite; or `window` losses are known
        and this one is over `spike_factor` times their median.
    """
    for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
      if not math.isfinite(value):
        raise UserError(
          f"the {name} of step {step} is {value}, on batch {to_hex(batch_hash())}; the last good "
          f"checkpoint is {checkpoint()}, and the same command retries from it; if it stops here "
          "again, lower the learning rate in a new run."
        )
    if self._factor and len(self._losses) == self._window:
      median = statistics.median(self._losses)
      if loss > self._factor * max(median, self._floor):
        raise UserError(
          f"the loss of step {step} is {loss:.4g}, over spike_factor={self._factor:g} times "
          f"the median {median:.4g} of the last {self._window} (taken as {self._floor:g} at "
          f"least), on batch {to_hex(batch_hash())}; the last good checkpoint is {checkpoint()}, "
          "and the same command retries from it; if it stops here again, lower the learning rate "
          "in a new run, or raise --spike-factor (0 for no test)."
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
