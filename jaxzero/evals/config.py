"""What is evaluated: problems, budgets, and the tree search's size at each budget."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  problems: int = 500
  validation_problems: int = 256
  batch_size: int = 256
  budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  """Multiples of the mean sampled episode."""
  simulations: tuple[int, ...] = (2, 2, 4, 8, 8, 16)
  """Simulations per search at each of these budgets, chosen on validation."""
