"""The plan of strategy `auto`: which problems are thought about how, by what the model foresees of
them (compute-optimal scaling: Snell et al. 2024, section 3)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxzero.errors import UserError
from jaxzero.search.choose import Choice
from jaxzero.search.config import TreeConfig


@dataclasses.dataclass(frozen=True)
class Approach:
  """A strategy, and how much of the budget it may take; None: as `search` was asked."""

  strategy: str
  tokens: int | None = None
  """Forward tokens that it may take of the budget, at most; None: all that is left."""
  accept: float | None = None
  """The score of a finished completion at which a problem needs no more thinking."""
  temperature: float | None = None
  aggregate: str | None = None
  vote: str | None = None
  tree: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  """Fields of `TreeConfig` that this approach sets."""

  def __post_init__(self):
    if self.tokens is not None and self.tokens < 1:
      raise UserError(f"tokens={self.tokens} of {self.strategy} must be at least 1.")
    if self.accept is not None and not 0.0 <= self.accept <= 1.0:
      raise UserError(f"accept={self.accept} of {self.strategy} must lie in 0..1.")
    self.choice(Choice())
    unknown = sorted(set(self.tree) - {field.name for field in dataclasses.fields(TreeConfig)})
    if unknown:
      raise UserError(f"the tree of {self.strategy} has no {' and no '.join(unknown)}.")

  def choice(self, asked: Choice) -> Choice:
    """How it chooses among what was finished."""
    vote = "majority" if self.strategy == "majority" else self.vote
    own = {"aggregate": self.aggregate, "vote": vote}
    return dataclasses.replace(asked, **{k: v for k, v in own.items() if v is not None})


@dataclasses.dataclass(frozen=True)
class Plan:
  """For each bin of foreseen difficulty the approaches, in the order in which they are tried."""

  bins: tuple[tuple[Approach, ...], ...]
  """The easiest first."""
  edges: tuple[float, ...] = ()
  """Falling values of P(right) at the prompt's end that part the bins: one less than these."""

  def __post_init__(self):
    if len(self.edges) != len(self.bins) - 1 or list(self.edges) != sorted(self.edges)[::-1]:
      raise UserError(
        f"a plan of {len(self.bins)} bins needs {len(self.bins) - 1} falling edges, not "
        f"{list(self.edges)}."
      )
    if not all(self.bins):
      raise UserError("every bin of a plan needs at least one approach.")

  def bin_of(self, foreseen: np.ndarray) -> np.ndarray:
    """[n] int: the bin of problems whose foreseen P(right) is [n]; 0 at or above the first edge."""
    return np.sum(np.asarray(foreseen)[:, None] < np.asarray(self.edges), axis=1)

  def to_dict(self) -> dict[str, Any]:
    """JSON-able: {"edges": [...], "bins": [[{"strategy": ..., "tokens": ...}, ...], ...]}."""
    bins = [[dataclasses.asdict(one) for one in approaches] for approaches in self.bins]
    return {"edges": list(self.edges), "bins": bins}

  @classmethod
  def from_dict(cls, record: Mapping[str, Any]) -> Plan:
    """The plan that `to_dict` wrote; UserError where it is none."""
    try:
      bins = tuple(tuple(Approach(**one) for one in approaches) for approaches in record["bins"])
      return cls(bins, tuple(float(edge) for edge in record["edges"]))
    except (KeyError, TypeError, ValueError) as error:
      reason = " ".join(str(error).split())
      raise UserError(f"this is no plan of `auto` ({reason}); make it again.") from error


ACCEPT = 0.9

HEARD = Plan(bins=((Approach("mcts"),),))
"""Without a plan, where the verifier may be heard: it ends the search at the first right answer."""

UNHEARD = Plan(bins=((Approach("greedy", accept=ACCEPT), Approach("best_of_n", accept=ACCEPT)),))
"""Without a plan, where it may not: one try at temperature 0, then samples, until the model is
sure. Neither is tuned."""
