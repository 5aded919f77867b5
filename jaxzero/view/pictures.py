"""The report's scaling charts as PNG files, drawn by matplotlib where it is installed."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jaxzero.files import PathLike, as_path, make_folder, write_atomic
from jaxzero.view.lines import (
  RIGHTS_NAMES,
  STRATEGY_NAMES,
  bin_curves,
  curves,
  larger_curves,
  train_curves,
)
from jaxzero.view.plots import TONES, Series, si, x_axis

_MARKERS = "os^D"


def write_pictures(scale: Mapping[str, Any], folder: PathLike) -> list[Any]:
  """Writes a PNG for every chart that scale.json has figures for; returns their paths.

  Without matplotlib (extra `plots`) it says so on stderr and writes none.
  """
  if importlib.util.find_spec("matplotlib") is None:
    print(
      "jaxzero: the PNG pictures are left out: matplotlib is missing "
      "(pip install 'jaxzero[plots]').",
      file=sys.stderr,
    )
    return []
  place = as_path(folder)
  make_folder(place)
  tokens, accuracy = "forward tokens per problem", "accuracy, held-out, %"
  charts: dict[str, tuple[Sequence[Series], str, str, bool]] = {}
  for rights, name in RIGHTS_NAMES.items():
    charts[f"thinking-{rights}"] = (curves(scale, rights), f"Where {name}", tokens, True)
  for strategy in ("mcts", "best_of_n"):
    rights, series = bin_curves(scale, strategy)
    title = f"By difficulty: {STRATEGY_NAMES[strategy]}"
    charts[f"difficulty-{strategy}"] = (series, title, tokens, True)
  training = train_curves(scale["train_time"])
  charts["training"] = (training, "Pre-training and self-play", "training FLOP", False)
  charts["larger"] = (larger_curves(scale), "Small and thinking", "FLOP per problem", True)
  written: list[Any] = []
  for name, (lines, title, x_label, log_x) in charts.items():
    shown = [one for one in lines if one.x]
    if shown:
      path = place / f"{name}.png"
      write_atomic(path, _draw(shown, title, x_label, accuracy, log_x))
      written.append(path)
  return written


def _draw(series: Sequence[Series], title: str, x_label: str, y_label: str, log_x: bool) -> bytes:
  import io

  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  picture = Figure(figsize=(7.2, 4.4), layout="constrained")
  FigureCanvasAgg(picture)
  axis = picture.add_subplot()
  for one in series:
    colour, y = TONES[one.tone % len(TONES)], [100 * value for value in one.y]
    axis.plot(
      one.x,
      y,
      color=colour,
      marker=_MARKERS[one.tone % 4],
      markersize=4.5,
      markerfacecolor="white" if one.dashed else colour,
      linestyle="--" if one.dashed else "-",
      label=one.name,
    )
    if one.low:
      low, high = [100 * v for v in one.low], [100 * v for v in one.high]
      if len(one.x) == 1:
        axis.vlines(one.x, low, high, color=colour)
      else:
        axis.fill_between(one.x, low, high, color=colour, alpha=0.12, linewidth=0)
  if log_x:
    axis.set_xscale("log")
  ticks, limits = x_axis(series, log_x, 8)
  axis.set_xticks(ticks, [si(tick) for tick in ticks])
  axis.set_xlim(*limits)
  axis.minorticks_off()
  axis.set(title=title, xlabel=x_label, ylabel=y_label, ylim=(0, None))
  axis.grid(alpha=0.3)
  axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
  out = io.BytesIO()
  picture.savefig(out, format="png", dpi=140)
  return out.getvalue()
