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
  simulations: tuple[int, ...] = (12, 12, 56, 144, 256, 256)
  """Simulations per search at each of these budgets, chosen on validation."""

  def check(self) -> None:
    """Raises UserError for an evaluation that cannot run."""
    if min(self.problems, self.validation_problems, self.batch_size) < 1:
      raise UserError(
        f"problems={self.problems}, validation_problems={self.validation_problems} and "
        f"batch_size={self.batch_size} must be at least 1."
      )
    if len(self.budgets) != len(self.simulations) or not self.budgets:
      raise UserError(
        f"{len(self.budgets)} budgets need as many simulations, got {len(self.simulations)}."
      )
    if min(self.budgets) < 1:
      raise UserError(f"budgets are multiples of an episode, at least 1; got {self.budgets}.")

  def play_at(self, multiple: int, play: PlayConfig) -> PlayConfig:
    """The tree search for a budget of `multiple` mean episodes: that of the largest entry below."""
    index = max((i for i, b in enumerate(self.budgets) if b <= multiple), default=0)
    mcts = dataclasses.replace(play.mcts, num_simulations=self.simulations[index])
    return dataclasses.replace(play, mcts=mcts)
