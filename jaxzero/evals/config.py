"""What is evaluated: problems, budgets, and how the search thinks."""

from __future__ import annotations

import dataclasses

from jaxzero.errors import UserError
from jaxzero.search.config import TreeConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  problems: int = 500
  validation_problems: int = 256
  batch_size: int = 256
  budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  """Multiples of the mean sampled episode."""
  tree: TreeConfig = TreeConfig()
  """The search of strategy `mcts`."""

  def check(self) -> None:
    """Raises UserError for an evaluation that cannot run."""
    if min(self.problems, self.validation_problems, self.batch_size) < 1:
      raise UserError(
        f"problems={self.problems}, validation_problems={self.validation_problems} and "
        f"batch_size={self.batch_size} must be at least 1."
      )
    if not self.budgets or min(self.budgets) < 1 or list(self.budgets) != sorted(self.budgets):
      raise UserError(f"--evaluation.budgets={self.budgets} must be ascending and at least 1.")
    self.tree.check(vocab_size=None)
