"""What is evaluated: problems, budgets, and the tree search's size at each budget."""

from __future__ import annotations

import dataclasses

from jaxzero.errors import UserError
from jaxzero.search.play import PlayConfig


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  problems: int = 500
  validation_problems: int = 256
  batch_size: int = 256
  budgets: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
  """Multiples of the mean sampled episode."""
  simulations: tuple[int, ...] = (12, 56, 144, 256)
  """Sizes of one search, ascending; a budget takes the largest that leaves room for an answer."""

  def check(self) -> None:
    """Raises UserError for an evaluation that cannot run."""
    if min(self.problems, self.validation_problems, self.batch_size) < 1:
      raise UserError(
        f"problems={self.problems}, validation_problems={self.validation_problems} and "
        f"batch_size={self.batch_size} must be at least 1."
      )
    for name in ("budgets", "simulations"):
      values = getattr(self, name)
      if not values or min(values) < 1 or list(values) != sorted(values):
        raise UserError(f"--evaluation.{name}={values} must be ascending and at least 1.")

  def play_at(self, budget: int, play: PlayConfig) -> PlayConfig:
    """The tree search for a budget of so many forward tokens.

    Below the smallest search and an answer, the budget is spent without a search.
    """
    fitting = [n for n in self.simulations if n + 1 + play.max_tokens <= budget]
    size = max(fitting, default=min(self.simulations))
    return dataclasses.replace(play, mcts=dataclasses.replace(play.mcts, num_simulations=size))
