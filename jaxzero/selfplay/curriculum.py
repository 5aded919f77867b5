"""Which problems a round plays: those that the model nearly solves.

A problem that is always solved, or never, teaches a policy that learns from its own tries nothing.
What a try is worth is estimated before it is made, by the value head at the prompt's end; the
prefill is charged to self-play. A value head that has learned nothing yet foresees 50 % everywhere,
and leaves the stream as it is.
"""

from __future__ import annotations

import numpy as np

CANDIDATES = 4
"""Problems looked at for each that is played."""
LOWEST, HIGHEST = 0.2, 0.8


def choose(success: np.ndarray, count: int) -> list[int]:
  """The first `count` of n problems with success [n] in LOWEST..HIGHEST, filled up with those next
  to 50 %, the earlier one first; their numbers, ascending."""
  inside = (success >= LOWEST) & (success <= HIGHEST)
  distance = np.where(inside, 0.0, np.abs(success - 0.5))
  return sorted(np.argsort(distance, kind="stable")[:count].tolist())
