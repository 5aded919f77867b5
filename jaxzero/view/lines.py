"""The lines of the charts on scaling, for the report and for PNG files, from RUN/scale.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxzero.view.page import interval, percent
from jaxzero.view.plots import Series, si

STRATEGY_NAMES = {
  "greedy": "greedy",
  "sample": "one sample",
  "majority": "majority vote",
  "best_of_n": "best of N",
  "shared_samples": "shared samples",
  "without_replacement": "without replacement",
  "best_first": "best-first",
  "beam": "beam",
  "dvts": "DVTS",
  "lookahead": "lookahead",
  "mcts": "tree search",
  "auto": "auto",
}
RIGHTS_NAMES = {
  "verifier": "the verifier is heard inside",
  "value": "the value head chooses",
  "prm": "the process reward model chooses",
}
_TONES = {
  "greedy": 0,
  "mcts": 3,
  "best_of_n": 1,
  "auto": 6,
  "beam": 2,
  "lookahead": 4,
  "dvts": 5,
  "majority": 7,
  "shared_samples": 8,
  "without_replacement": 9,
  "best_first": 11,
  "sample": 12,
}
_BINS = ("easiest fifth", "second", "third", "fourth", "hardest fifth")


def curves(scale: Mapping[str, Any], rights: str) -> list[Series]:
  """A line for every strategy under these rights; those without rights are shown beside them."""
  shown = [way for way in scale["ways"] if way["rights"] in (rights, "none")]
  if all(way["rights"] == "none" for way in shown):
    return []
  return [
    Series(
      STRATEGY_NAMES[way["strategy"]],
      [p["forward_tokens_per_problem"] for p in way["points"]],
      [p["accuracy"] for p in way["points"]],
      _TONES[way["strategy"]],
      notes=[
        f"{STRATEGY_NAMES[way['strategy']]}, budget {p['budget']}: {percent(p['accuracy'])}, "
        f"{interval(p)}"
        for p in way["points"]
      ],
      dashed=way["strategy"] in ("majority", "shared_samples", "without_replacement", "best_first"),
    )
    for way in shown
  ]


def bin_curves(scale: Mapping[str, Any], strategy: str) -> tuple[str, list[Series]]:
  """The rights under which a strategy's bins are shown (without a verifier if so measured), and a
  line for every bin of difficulty."""
  order = {rights: number for number, rights in enumerate(("prm", "value", "verifier"))}
  found = [w for w in scale["ways"] if w["strategy"] == strategy and w["rights"] in order]
  if not found:
    return "", []
  way = min(found, key=lambda w: order[w["rights"]])
  lines: dict[int, list[Mapping[str, Any]]] = {}
  for point in way["points"]:
    for part in point["by_bin"]:
      lines.setdefault(part["bin"], []).append(part)
  series = [
    Series(
      _BINS[number],
      [part["forward_tokens_per_problem"] for part in parts],
      [part["accuracy"] for part in parts],
      (3, 1, 5, 2, 6)[number],
      [part["ci95"][0] for part in parts],
      [part["ci95"][1] for part in parts],
    )
    for number, parts in sorted(lines.items())
  ]
  return way["rights"], series


def train_curves(train: Mapping[str, Any]) -> list[Series]:
  """Validation accuracy by training FLOPs: pre-training grey, self-play green."""
  names = {"pretrain": ("pre-training", 0), "self_play": ("self-play", 3)}
  lines = {
    stage: [(p["flops"], p["accuracy"]) for p in train["validation"] if p["stage"] == stage]
    for stage in names
  }
  if lines["pretrain"] and lines["self_play"]:  # self-play goes on from the best model
    best = max(accuracy for _, accuracy in lines["pretrain"])
    lines["self_play"].insert(0, (train["flops"]["pretrain"], best))
  ends = {end["stage"]: end for end in train["test"]}
  series = []
  for stage, (name, index) in names.items():
    line, end = lines[stage], ends[stage]
    series.append(Series(name, [x for x, _ in line], [y for _, y in line], index))
    interval_ = ([end["ci95"][0]], [end["ci95"][1]])
    series.append(
      Series(f"{name}, test", [end["flops"]], [end["accuracy"]], index, *interval_, dashed=True)
    )
  return [one for one in series if one.x]


def larger_curves(scale: Mapping[str, Any]) -> list[Series]:
  """Accuracy by inference FLOPs: the small model's ways of thinking, the larger one's greedy."""
  larger = scale["larger"]
  if not larger:
    return []
  wanted = ("mcts", "best_of_n", "auto")
  lines = [
    Series(
      f"small, {STRATEGY_NAMES[way['strategy']]}" + suffix(way["rights"]),
      [p["flops_per_problem"] for p in way["points"]],
      [p["accuracy"] for p in way["points"]],
      _TONES[way["strategy"]],
      dashed=way["rights"] != "verifier",
    )
    for way in scale["ways"]
    if way["strategy"] in wanted and way["rights"] in ("verifier", "value")
  ]
  greedy = larger["test"]
  return [
    *lines,
    Series(
      f"larger ({si(larger['parameters'])}), greedy",
      [greedy["flops_per_problem"]],
      [greedy["accuracy"]],
      0,
      [greedy["ci95"][0]],
      [greedy["ci95"][1]],
    ),
  ]


def suffix(rights: str) -> str:
  """What tells a strategy's rights apart from hearing the verifier."""
  return {"value": ", by value", "prm": ", by PRM"}.get(rights, "")
