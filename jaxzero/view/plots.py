"""Line charts as hand-written inline SVG: small, offline, dark and light by themselves.

Text and axes take `currentColor`, series the page's CSS variables `--s0` ... `--s6`, each with a
fallback, so a chart also stands alone. Series differ by colour, marker and dash, never colour only.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from typing import Any

TONES = ("#5b6472", "#0b62b8", "#bf4a06", "#00765a", "#93478a", "#7d6200", "#a2183c")
"""Series colours on a light page; all reach 4.5:1 on white and differ for the colour-blind."""

_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclasses.dataclass(frozen=True)
class Series:
  """One line; `low` and `high` are its interval, `notes` the hover texts of its points."""

  name: str
  x: Sequence[float]
  y: Sequence[float]
  tone: int
  low: Sequence[float] = ()
  high: Sequence[float] = ()
  notes: Sequence[str] = ()
  dashed: bool = False


def escape(text: object) -> str:
  """HTML-escaped text whose control and direction-changing characters are made visible."""
  return html.escape(printable(str(text)), quote=True)


def printable(text: str) -> str:
  """Text safe for a terminal and a page: what is not printable becomes a replacement mark."""
  return "".join(
    c if c.isprintable() else " " if c in "\n\t\r" else "\N{REPLACEMENT CHARACTER}" for c in text
  )


def tone(index: int) -> str:
  """A CSS colour of the palette, wrapping around."""
  index %= len(TONES)
  return f"var(--s{index},{TONES[index]})"


def si(value: float, digits: int = 3) -> str:
  """1234567 -> '1.23M'."""
  for scale, prefix in _PREFIXES:
    if abs(value) >= scale:
      return f"{value / scale:.{digits}g}{prefix}" if abs(value) < 1e21 else f"{value:.{digits}g}"
  return f"{value:.{digits}g}"


def figure(
  series: Sequence[Series], title: str, x_label: str, y_label: str, log_x: bool = False
) -> str:
  """The chart for wide screens (direct labels) and for phones (a legend); CSS shows one of them."""
  shown = [s for s in map(_finite, series) if s.x and (not log_x or min(s.x) > 0)]
  if not shown:
    return '<p class="missing">Nothing to draw yet.</p>'
  right = 34 + 7.6 * max(len(s.name) for s in shown)
  wide = _chart(shown, title, x_label, y_label, log_x, 800, 400, right=right)
  narrow = _chart(shown, title, x_label, y_label, log_x, 360, 300, right=14)
  keys = "".join(f"<span>{_key(s)}{escape(s.name)}</span>" for s in shown)
  return (
    f'<div class="wide">{wide}</div>'
    f'<div class="narrow"><div class="legend">{keys}</div>{narrow}</div>'
  )


def _chart(
  series: Sequence[Series],
  title: str,
  x_label: str,
  y_label: str,
  log_x: bool,
  width: int,
  height: int,
  right: float,
) -> str:
  left, top, bottom = 46, 34, 50
  x_ticks, (x0, x1) = x_axis(series, log_x, 8 if width > 500 else 4)
  y_ticks, y1 = _y_axis(series)
  warp = math.log10 if log_x else float

  def px(x: float) -> float:
    return left + (warp(x) - warp(x0)) / (warp(x1) - warp(x0)) * (width - left - right)

  def py(y: float) -> float:
    return height - bottom - y / y1 * (height - top - bottom)

  out = [
    f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}" '
    'font-family="system-ui, sans-serif" font-size="12.5">'
  ]
  for y in y_ticks:
    opacity = 0.5 if y == 0 else 0.13
    out.append(
      f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="currentColor" '
      f'stroke-opacity="{opacity}"/>' + _text(left - 8, py(y) + 4, f"{y * 100:g}%", "end", 0.72)
    )
  for x in x_ticks:
    out.append(
      f'<path d="M{px(x):.1f} {height - bottom}v5" stroke="currentColor" stroke-opacity=".5"/>'
      + _text(px(x), height - bottom + 20, si(x), "middle", 0.72)
    )
  out.append(_text(left - 38, 16, y_label, "start", 0.85))
  out.append(_text((left + width - right) / 2, height - 8, x_label, "middle", 0.85))
  out += [_band(s, px, py) for s in series]
  out += [_line(s, px, py) for s in series]
  if width > 500:
    out += _direct_labels(series, px, py, width - right + 16, height - bottom)
  return "".join(out) + "</svg>"


def _band(s: Series, px, py) -> str:
  if not s.low:
    return ""
  if len(s.x) == 1:
    x, low, high = px(s.x[0]), py(s.low[0]), py(s.high[0])
    bar = f"M{x:.1f} {low:.1f}V{high:.1f}m-5 0h10M{x - 5:.1f} {low:.1f}h10"
    return f'<path d="{bar}" style="stroke:{tone(s.tone)}" stroke-width="1.5" fill="none"/>'
  up = [f"{px(x):.1f} {py(y):.1f}" for x, y in zip(s.x, s.high, strict=True)]
  down = [f"{px(x):.1f} {py(y):.1f}" for x, y in zip(s.x, s.low, strict=True)]
  path = "M" + "L".join(up + down[::-1]) + "Z"
  return f'<path d="{path}" style="fill:{tone(s.tone)}" fill-opacity=".13"/>'


def _line(s: Series, px, py) -> str:
  dash = ' stroke-dasharray="6 5"' if s.dashed else ""
  points = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in zip(s.x, s.y, strict=True))
  out = (
    f'<path d="M{points}" fill="none" style="stroke:{tone(s.tone)}" stroke-width="2.25" '
    f'stroke-linejoin="round" stroke-linecap="round"{dash}/>'
  )
  dense = len(s.x) > 30
  for i, (x, y) in enumerate(zip(s.x, s.y, strict=True)):
    note = escape(s.notes[i] if s.notes else f"{s.name}: {y:.1%} at {si(x)}")
    size = 2.2 if dense and i + 1 < len(s.x) else 4.5
    out += f"<g>{_marker(s, px(x), py(y), size)}<title>{note}</title></g>"
  return out


def _marker(s: Series, x: float, y: float, r: float) -> str:
  shapes = (
    f"M{x - r:.1f} {y:.1f}a{r} {r} 0 1 0 {2 * r} 0a{r} {r} 0 1 0 {-2 * r} 0Z",
    f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}Z",
    f"M{x:.1f} {y - 1.3 * r:.1f}l{1.3 * r:.1f} {2.3 * r:.1f}h{-2.6 * r:.1f}Z",
    f"M{x:.1f} {y - 1.4 * r:.1f}l{1.4 * r:.1f} {1.4 * r:.1f}l{-1.4 * r:.1f} {1.4 * r:.1f}"
    f"l{-1.4 * r:.1f} {-1.4 * r:.1f}Z",
  )
  fill = "var(--panel,#fff)" if s.dashed else tone(s.tone)
  style = f"fill:{fill};stroke:{tone(s.tone)}"
  return f'<path d="{shapes[s.tone % 4]}" style="{style}" stroke-width="1.5"/>'


def _direct_labels(series: Sequence[Series], px, py, x: float, lowest: float) -> list[str]:
  """Names at the right edge, pushed apart and tied to their lines; a line that ends early bears its
  name below its end."""
  names, out = [], []
  for s in series:
    end_x, end_y = px(s.x[-1]), py(s.y[-1])
    if len(s.x) > 1 and end_x < 0.6 * x:
      out.append(_name(s, end_x, end_y + 26, "middle"))
    else:
      names.append((end_y, end_x, s))
  names.sort(key=lambda name: name[:2])
  heights = [end_y for end_y, _, _ in names]
  for i in range(1, len(heights)):
    heights[i] = max(heights[i], heights[i - 1] + 17)
  for i in reversed(range(len(heights))):
    heights[i] = lowest = min(heights[i], lowest - 2 if i + 1 == len(heights) else lowest - 17)
  for (end_y, end_x, s), y in zip(names, heights, strict=True):
    out.append(
      f'<path d="M{end_x + 7:.1f} {end_y:.1f}L{x - 4:.1f} {y:.1f}" style="stroke:{tone(s.tone)}" '
      'stroke-opacity=".55" stroke-dasharray="1 3.5" stroke-linecap="round" fill="none"/>'
    )
    out.append(_name(s, x, y + 4, "start"))
  return out


def _name(s: Series, x: float, y: float, anchor: str) -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{tone(s.tone)}" '
    f'font-weight="600">{escape(s.name)}</text>'
  )


def _key(s: Series) -> str:
  dash = ' stroke-dasharray="5 4"' if s.dashed else ""
  line = f'<path d="M1 7H27" style="stroke:{tone(s.tone)}" stroke-width="2.25"{dash}/>'
  return f'<svg width="28" height="14" aria-hidden="true">{line}{_marker(s, 14, 7, 4)}</svg>'


def _text(x: float, y: float, text: str, anchor: str, opacity: float) -> str:
  return (
    f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="currentColor" '
    f'fill-opacity="{opacity}">{escape(text)}</text>'
  )


def x_axis(
  series: Sequence[Series], log_x: bool, count: int
) -> tuple[list[float], tuple[float, float]]:
  """Round ticks, about `count` of them, and the axis' ends."""
  low, high = min(min(s.x) for s in series), max(max(s.x) for s in series)
  if log_x:
    low, high = low / 1.2, high * 1.2
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1, 3), (1,)):
      ticks = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
      if len(ticks) <= count:
        break
    return ticks, (low, high)
  low = 0.0 if low >= 0 else low
  high = high if high > low else low + 1.0
  step = _nice((high - low) / count)
  ticks = [i * step for i in range(math.ceil(low / step), math.floor(high / step * 1.0001) + 1)]
  return ticks, (low, high)


def _y_axis(series: Sequence[Series]) -> tuple[list[float], float]:
  highest = max(max([*s.y, *s.high]) for s in series)
  step = _nice(max(highest, 0.05) / 5)
  count = math.ceil(highest / step - 1e-9) or 1
  return [i * step for i in range(count + 1)], count * step


def _nice(step: float) -> float:
  """The next of 1, 2, 5 x 10^k."""
  scale = 10.0 ** math.floor(math.log10(step))
  return next(f * scale for f in (1, 2, 5, 10) if f * scale >= step * 0.999)


def _finite(s: Series) -> Series:
  """The series without points that cannot be drawn."""
  columns = [list(c) for c in (s.x, s.y, s.low, s.high) if len(c)]
  keep = [i for i in range(len(s.x)) if all(math.isfinite(c[i]) for c in columns)]
  pick: dict[str, Any] = {
    name: [getattr(s, name)[i] for i in keep] if len(getattr(s, name)) else []
    for name in ("x", "y", "low", "high", "notes")
  }
  return dataclasses.replace(s, **pick)
