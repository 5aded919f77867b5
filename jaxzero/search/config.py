"""Settings: of tree searches, one class for every order in which leaves are taken; of lanes."""

from __future__ import annotations

import dataclasses

from jaxzero.errors import UserError

VALUE_ORDERS = ("gumbel", "puct")
PATH_ORDERS = ("guided", "best_first", "without_replacement", "shared_samples")
ORDERS = (*VALUE_ORDERS, *PATH_ORDERS)
PARALLEL = ("none", "exact", "lazy")
BACKENDS = ("own", "mctx")
IN_LANES = ("beam", "dvts", "lookahead")
_RANGES = {
  "depth_bonus": 100.0,
  "regret_weight": 1.0,
  "value_weight": 100.0,
  "failure_weight": 100.0,
  "fork_threshold": 2.0,
  "value_scale": 1e4,
  "maxvisit_init": 1e4,
  "rollout_weight": 1.0,
}  # the largest that makes sense; the smallest is 0


@dataclasses.dataclass(frozen=True)
class TreeConfig:
  """One tree search from one position.

  Orders that back up values (AlphaZero's) take `num_simulations` from the root; orders that follow
  paths grow one node a simulation wherever the best open edge of the whole tree is.
  """

  order: str = "guided"
  """Which leaf comes next. By values: `gumbel` (sequential halving at the root, Gumbel MuZero's
  rule below it) or `puct`. By paths: `best_first` (log-probability of the path plus `depth_bonus`
  a token), `guided` (the same plus what value head and verdicts say of the parent),
  `without_replacement` (samples of the policy, none twice), `shared_samples` (independent samples
  that share their prefixes)."""
  num_simulations: int = 96
  num_nodes: int = 0
  """Nodes (tokens) that a tree may hold; 0: as many as simulations."""
  num_samples: int = 0
  """shared_samples: samples that a tree draws to their ends, right or wrong; 0: as many as its
  nodes allow."""
  num_candidates: int = 16
  """A: tokens offered at each node."""
  max_considered: int = 16
  """gumbel: candidates that sequential halving starts with at the root."""
  value_scale: float = 0.1
  maxvisit_init: float = 50.0
  rescale_values: bool = False
  depth_bonus: float = 0.1
  """best_first, guided: how much a token's log-probability may fall short of 0 for free."""
  regret_weight: float = 0.5
  """guided: share of a token's log-probability that is measured against the likeliest one's."""
  value_weight: float = 0.0
  """guided: weight of the parent's log P(right) by the value head."""
  failure_weight: float = 0.5
  """guided: weight of -log(1 + wrong ends below the parent)."""
  max_run: int = 1
  """gumbel, puct: tokens of one edge. A run goes on while its token is forced, up to the next fork
  or delimiter."""
  fork_threshold: float = 0.95
  """A token with at least this probability is forced: it is played without a search."""
  rollout: bool = False
  """gumbel, puct: a simulation dives along the policy to the end; its tokens stay in the tree."""
  rollout_weight: float = 1.0
  """With `rollout`: share of the dive's outcome in the leaf's value, beside the value head's."""
  parallel: str = "none"
  """gumbel: how a pass of sequential halving is evaluated: `none` (a leaf at a time), `exact` or
  `lazy` (all leaves of a pass in one forward; the same tree)."""
  reuse: bool = False
  """gumbel, puct, in play: a search goes on from the subtree that the last one grew below the moves
  played since. All it inherits informs its choices; simulations and tokens count new ones only."""
  backend: str = "own"
  """`own`, or `mctx`: the stock loop, where it can do the same."""

  def weights(self, temperature: float = 1.0) -> dict[str, float]:
    """What may change without compiling anew."""
    names = ("depth_bonus", "regret_weight", "value_weight", "failure_weight", "rollout_weight")
    return {"temperature": temperature, **{name: getattr(self, name) for name in names}}

  def static(self) -> TreeConfig:
    """The config with all of `weights` at their defaults: equal ones share compiled functions."""
    fresh = TreeConfig()
    return dataclasses.replace(
      self,
      depth_bonus=fresh.depth_bonus,
      regret_weight=fresh.regret_weight,
      value_weight=fresh.value_weight,
      failure_weight=fresh.failure_weight,
      rollout_weight=fresh.rollout_weight,
    )

  def along_paths(self, order: str, nodes: int) -> TreeConfig:
    """This config for a tree of so many nodes, grown along paths; other knobs are reset."""
    return dataclasses.replace(
      TreeConfig(order=order, num_simulations=nodes, num_candidates=self.num_candidates),
      depth_bonus=self.depth_bonus,
      regret_weight=self.regret_weight,
      value_weight=self.value_weight,
      failure_weight=self.failure_weight,
      max_considered=min(16, self.num_candidates),
    )

  @property
  def capacity(self) -> int:
    """Nodes that a tree may hold, the root not counted."""
    return self.num_nodes or self.num_simulations

  def check(self, vocab_size: int | None) -> None:
    """Raises UserError for a search that cannot run; None: whatever the vocabulary."""
    for name, choices in (("order", ORDERS), ("parallel", PARALLEL), ("backend", BACKENDS)):
      if getattr(self, name) not in choices:
        raise UserError(f"{name}={getattr(self, name)!r} is unknown; use {', '.join(choices)}.")
    if self.num_candidates < 2 or (vocab_size and self.num_candidates > vocab_size):
      raise UserError(
        f"num_candidates={self.num_candidates} must be at least 2 and at most the vocabulary's "
        f"{vocab_size or 'size'}."
      )
    if not 1 <= self.max_considered <= self.num_candidates and self.order == "gumbel":
      raise UserError(
        f"max_considered={self.max_considered} must lie between 1 and "
        f"num_candidates={self.num_candidates}."
      )
    if not 1 <= self.num_simulations <= 65_536:
      raise UserError(f"num_simulations={self.num_simulations} must lie between 1 and 65536.")
    if self.num_nodes and not 2 <= self.num_nodes <= 65_536:
      raise UserError(
        f"num_nodes={self.num_nodes} must be 0 (as many as simulations) or lie in 2..65536."
      )
    for name, most in _RANGES.items():
      if not 0.0 <= getattr(self, name) <= most:
        raise UserError(f"{name}={getattr(self, name)} must lie between 0 and {most:g}.")
    if not 0 <= self.num_samples <= (65_536 if self.order == "shared_samples" else 0):
      raise UserError(
        f"num_samples={self.num_samples} must lie in 0..65536 with order=shared_samples, and be 0 "
        f"with order={self.order}."
      )
    if self.max_run < 1:
      raise UserError(f"max_run={self.max_run} must be at least 1.")
    plain = self.max_run == 1 and not self.rollout
    if self.order in PATH_ORDERS and not plain:
      raise UserError(f"order={self.order} makes its own runs; leave max_run=1 and rollout off.")
    if self.parallel != "none" and (self.order != "gumbel" or not plain):
      raise UserError(
        f"parallel={self.parallel} is made for order=gumbel, max_run=1 and no rollout; set "
        "parallel=none."
      )
    if self.reuse and self.order not in VALUE_ORDERS:
      raise UserError(
        f"order={self.order} grows one tree a problem, so no subtree is left to reuse; leave reuse "
        "off or use order=gumbel or puct."
      )
    if self.reuse and (self.parallel == "exact" or self.backend == "mctx"):
      raise UserError(
        f"reuse is made for parallel=none or lazy and backend=own, not for "
        f"parallel={self.parallel} and backend={self.backend}."
      )
    stock = plain and self.order in VALUE_ORDERS and self.parallel == "none" and not self.num_nodes
    if self.backend == "mctx" and not stock:
      raise UserError(
        "backend=mctx searches in orders gumbel and puct with max_run=1, no rollout, parallel=none "
        "and num_nodes=0; use backend=own."
      )


@dataclasses.dataclass(frozen=True)
class Lanes:
  """How wide a step-level search is."""

  width: int = 64
  """Most lanes a problem; a budget that does not pay for so many whole completions has fewer."""
  expansion: int = 4
  """M: one lane in so many stays at a step's end, and spawns so many."""
  steps_ahead: int = 1
  """`lookahead`: how many steps a lane is rolled forward before it is scored."""

  def check(self) -> None:
    """Raises UserError for lanes that cannot run."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if not 1 <= value <= 1024:
        raise UserError(f"lanes.{field.name}={value} must lie in 1..1024.")

  def ahead(self, strategy: str) -> int:
    """How many steps a lane is rolled forward."""
    return self.steps_ahead if strategy == "lookahead" else 0

  def count(self, strategy: str, budget: int, longest: int) -> int:
    """The most lanes whose whole completions, rolled steps included, fit into a budget.

    A multiple of the expansion where there are more lanes than that; at least one.
    """
    count = min(self.width, budget // (longest * (1 + self.ahead(strategy))))
    return max(1, count - count % self.expansion if count > self.expansion else count)

  def rows(self, count: int) -> int:
    """Cache rows a problem for so many lanes: few sizes, so that budgets share programs."""
    rows = 1 if count == 1 else self.expansion
    while rows < count:
      rows *= 2
    return rows

  def group(self, strategy: str, rows: int) -> int:
    """Lanes of one group."""
    return min(self.expansion, rows) if strategy == "dvts" else rows
