"""What is tried on the validation split for each way of thinking: equally many settings for all of
the same rights.

A *way* is a strategy and the rights that it has: who says which of its answers is given.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

from jaxzero.search.choose import AGGREGATES, Choice
from jaxzero.search.plan import Plan
from jaxzero.search.play import PlayConfig
from jaxzero.search.request import DEAF, ONE_TRY
from jaxzero.search.strategies import STRATEGIES

RIGHTS = ("verifier", "value", "prm")
"""verifier: heard inside the search. value, prm: the value head, or the process reward model in its
place, scores what was finished. A way without any (`none`) chooses by nothing or by votes."""

_TEMPERATURES = (0.6, 0.8, 1.0, 1.25)
_PATHS = ("temperature", "depth_bonus")
_GUIDED = ("depth_bonus", "failure_weight", "value_weight")
TREE_KNOBS = (*_GUIDED, "regret_weight")


@dataclasses.dataclass(frozen=True)
class Way:
  """One way of thinking."""

  strategy: str
  rights: str = "none"

  @property
  def name(self) -> str:
    return self.strategy if self.rights == "none" else f"{self.strategy}/{self.rights}"


def ways(strategies: tuple[str, ...], rights: tuple[str, ...]) -> list[Way]:
  """Every strategy under all of the rights that make a difference to it."""
  found = []
  for strategy in STRATEGIES:
    if strategy in strategies:
      of_it = ("none",) if strategy in DEAF else rights
      found += [Way(strategy, one) for one in of_it]
  return found


def grid(way: Way) -> list[dict[str, Any]]:
  """The settings tried first for a way: none for one try and for `auto`, whose plan is its tuning.

  Where the verifier is heard inside, four: temperatures, or for the orders by scores their knobs.
  Elsewhere eight: each of the four with the best answer given, and with equal answers' scores
  added up (majority has no scores to choose by, so it tries eight temperatures).
  """
  if way.strategy in (*ONE_TRY, "auto"):
    return [{}]
  if way.strategy == "majority":
    return [{"temperature": t} for t in (0.3, 0.45, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25)]
  heard = way.rights == "verifier"
  settings: list[dict[str, Any]]
  if way.strategy == "mcts":
    heard_of = ((0.1, 0.5, 0.0), (0.2, 0.5, 0.0), (0.1, 1.0, 0.0), (0.1, 0.5, 0.25))
    judged = ((0.1, 0.0, 0.0), (0.1, 0.0, 0.5), (0.1, 0.0, 1.0), (0.1, 0.0, 2.0))
    settings = [dict(zip(_GUIDED, one, strict=True)) for one in (heard_of if heard else judged)]
  elif way.strategy == "best_first":
    of_paths = ((1.0, 0.1), (1.0, 0.3), (1.0, 0.6), (1.5, 0.3))
    settings = [dict(zip(_PATHS, one, strict=True)) for one in of_paths]
  else:
    settings = [{"temperature": t} for t in _TEMPERATURES]
  if heard:
    return settings
  return [{**one, "vote": vote} for one, vote in itertools.product(settings, ("best", "weighted"))]


def further(way: Way, best: Mapping[str, Any]) -> list[dict[str, Any]]:
  """What is tried behind the grid, from its best setting on: the other aggregates of the steps'
  scores, three; majority, which has no scores, tries three more temperatures instead.

  Nothing for one try, for `auto`, and where the verifier is heard: what it finds right is given.
  """
  if way.strategy == "majority":
    return [{"temperature": t} for t in (0.2, 0.5, 1.1)]
  if way.strategy in (*ONE_TRY, "auto") or way.rights == "verifier":
    return []
  return [{**best, "aggregate": name} for name in AGGREGATES if name != Choice().aggregate]


def effort(way: Way) -> int:
  """How many settings are tried for a way."""
  return len(grid(way)) + len(further(way, {}))


def search_arguments(way: Way, setting: dict[str, Any], play: PlayConfig) -> dict[str, Any]:
  """A way with a setting of its grid (`auto`: with {"plan": ...}) as arguments of `search`."""
  knobs = {name: setting[name] for name in TREE_KNOBS if name in setting}
  tree = dataclasses.replace(play.tree, **knobs)
  return {
    "strategy": way.strategy,
    "play": dataclasses.replace(play, tree=tree),
    "temperature": setting.get("temperature", 1.0),
    "verify_inside": way.rights == "verifier",
    "choice": Choice(
      score="verifier" if way.rights == "verifier" else "value",
      aggregate=setting.get("aggregate", Choice().aggregate),
      vote=setting.get("vote", "best"),
    ),
    "plan": Plan.from_dict(setting["plan"]) if "plan" in setting else None,
  }
