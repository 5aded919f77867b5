"""Budgets: a cap on forward tokens per problem, the prompt not counted."""

from __future__ import annotations

import dataclasses

from jaxzero.errors import UserError

EFFORTS = {"none": 1, "minimal": 2, "low": 4, "medium": 8, "high": 16, "xhigh": 32, "max": 64}
"""Effort levels: multiples of what the longest completion costs. `none` pays for one try."""

MOST = 65_536


@dataclasses.dataclass(frozen=True)
class Budget:
  """So many forward tokens per problem, 1 to 65536; a completion that they cut off is wrong.

  Where a process reward model reads along, both models' forward tokens are paid from one budget.
  """

  forward_tokens: int

  def __post_init__(self):
    if not 1 <= self.forward_tokens <= MOST:
      raise UserError(
        f"budget={self.forward_tokens} forward tokens per problem must lie in 1..{MOST}."
      )

  @classmethod
  def of_effort(cls, level: str, longest: int) -> Budget:
    """The budget of an effort level; `longest`: forward tokens of the longest completion."""
    if level not in EFFORTS:
      raise UserError(f"effort {level!r} is unknown; choose one of {', '.join(EFFORTS)}.")
    return cls(EFFORTS[level] * longest)

  def positions(self, tokens_per_position: int) -> int:
    """The token positions that the budget pays for; UserError where it pays for none."""
    if self.forward_tokens < tokens_per_position:
      raise UserError(
        f"budget={self.forward_tokens} pays for no position: with a process reward model beside "
        f"the policy each costs {tokens_per_position} forward tokens; give more."
      )
    return self.forward_tokens // tokens_per_position
