"""Strategy `auto`: foresees how hard a problem is, and thinks about it as the plan says.

What counts for stopping is what the search itself knows, a verdict that it may hear or the model's
own score; an answer's true grade is given when all is over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from jaxzero.errors import UserError
from jaxzero.search.budget import MOST
from jaxzero.search.choose import Finished
from jaxzero.search.foresee import foresee
from jaxzero.search.plan import HEARD, UNHEARD, Approach, Plan
from jaxzero.search.request import Request, SearchResult

Runners = Mapping[str, Callable[[Request], list[SearchResult]]]


def run(request: Request, runners: Runners) -> list[SearchResult]:
  """Tries each bin's approaches, stage by stage."""
  plan = request.plan or (HEARD if request.inside else UNHEARD)
  for name in {one.strategy for bins in plan.bins for one in bins}:
    if name not in runners or name == request.strategy:
      known = ", ".join(other for other in runners if other != request.strategy)
      raise UserError(f"the plan names strategy {name!r}; `auto` can use {known}.")
  thoughts = _Thoughts(request, plan)
  for stage in range(max(map(len, plan.bins))):
    for approach, caps in thoughts.groups(stage):
      thoughts.think(approach, caps, stage, runners)
  return thoughts.results()


class _Thoughts:
  """What has become of each problem so far."""

  def __init__(self, request: Request, plan: Plan):
    self.request, self.plan, count = request, plan, len(request.problems)
    self.flops = np.zeros(count)
    self.bins = self._bins(plan) if plan.edges else np.zeros(count, int)
    self.spent = np.zeros(count, np.int32)  # positions
    self.settled = np.zeros(count, bool)
    self.finished: list[list[Finished]] = [[] for _ in range(count)]
    self.unfinished: list[tuple[int, ...]] = [()] * count
    self.choices = [request.choice] * count

  def _bins(self, plan: Plan) -> np.ndarray:
    """[n] int: each problem's bin, by what the model foresees of it."""
    asked, engine = self.request, self.request.engine
    success, positions = foresee(engine, asked.params, asked.problems, asked.batch_size)
    self.flops += engine.flops(positions) / len(success)
    return plan.bin_of(success)

  def groups(self, stage: int) -> list[tuple[Approach, dict[int, int]]]:
    """What comes next for each problem that is neither settled nor out of budget: an approach, and
    its forward tokens by number of problem. Bins that differ by these alone are one group,
    so that batches are full and programs few."""
    found: list[tuple[Approach, dict[int, int]]] = []
    for number, approaches in enumerate(self.plan.bins):
      if stage >= len(approaches):
        continue
      cap = approaches[stage].tokens or MOST
      approach = dataclasses.replace(approaches[stage], tokens=None)
      members = (self.bins == number) & ~self.settled & (self.spent < self.request.caps)
      caps = next((caps for other, caps in found if other == approach), None)
      if caps is None:
        caps = {}
        found.append((approach, caps))
      caps.update(dict.fromkeys(np.flatnonzero(members).tolist(), cap))
    return [(approach, dict(sorted(caps.items()))) for approach, caps in found if caps]

  def think(
    self, approach: Approach, caps: Mapping[int, int], stage: int, runners: Runners
  ) -> None:
    """Spends up to so many forward tokens of an approach on the problems of these numbers."""
    asked, each = self.request, self.request.engine.tokens_per_position
    index = np.array(list(caps))
    part = self._part(index, approach, np.array(list(caps.values())) // each, stage)
    for i, result in zip(index, runners[approach.strategy](part), strict=True):
      before = int(self.spent[i]) * each
      self.finished[i] += [
        dataclasses.replace(one, spent=before + one.spent) for one in result.finished
      ]
      self.unfinished[i] = self.unfinished[i] or result.tokens
      self.spent[i] += result.forward_tokens // each
      self.flops[i] += result.flops
      self.choices[i] = choice = part.choice
      accept = asked.accept if approach.accept is None else approach.accept
      sure = accept is not None and any(choice.total(x) >= accept for x in result.finished)
      self.settled[i] = sure or any(one.right for one in result.finished)

  def _part(self, index: np.ndarray, approach: Approach, caps: np.ndarray, stage: int) -> Request:
    """What the approach's strategy is asked: these problems, on up to `caps` [n] positions of what
    they have left."""
    asked = self.request
    tree = dataclasses.replace(asked.settings.tree, **approach.tree)
    part = dataclasses.replace(
      asked,
      strategy=approach.strategy,
      problems=[asked.problems[i] for i in index],
      # Samples of a later stage are others than those of the stage before.
      seed=(asked.seed + 104_729 * stage) % 2**31,
      play=dataclasses.replace(asked.settings, tree=tree),
      temperature=approach.temperature or asked.temperature,
      choice=approach.choice(asked.choice),
      accept=None,
      plan=None,
      numbers=asked.key_numbers[index],
      limits=np.minimum(np.maximum(1, caps), asked.caps[index] - self.spent[index]),
    )
    accept = asked.accept if approach.accept is None else approach.accept
    return part if part.grows_one_tree else dataclasses.replace(part, accept=accept)

  def results(self) -> list[SearchResult]:
    return [
      dataclasses.replace(self.request, choice=self.choices[i]).result(
        i, self.finished[i], self.unfinished[i], self.spent[i], self.flops[i]
      )
      for i in range(len(self.finished))
    ]
