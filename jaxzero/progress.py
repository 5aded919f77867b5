"""Progress of every loop a person may wait for: a live bar on a terminal, rare plain lines in logs.

Open bars share one display. The first one stays on screen when it ends; bars inside it vanish.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import sys
import threading
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  ProgressColumn,
  Task,
  TaskID,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0

_lock = threading.RLock()
_open: list[Bar] = []
_live: Progress | None = None
_last_line = 0.0
_silent = False


def silence() -> None:
  """Shows no bars in this process: of many hosts only one tells how far they are."""
  global _silent
  _silent = True


class Bar:
  """One running count; `bar` makes it."""

  def __init__(self, description: str, total: float | None, unit: str, start: float):
    self._description, self._total, self._unit = description, total, unit
    self._start = self._done = start
    self._begin = time.monotonic()
    self._task: TaskID | None = None

  def advance(self, n: float = 1) -> None:
    """Counts n more units as done."""
    with _lock:
      self._done += n
      if _live is not None and self._task is not None:
        _live.advance(self._task, n)
      elif not _silent:
        (_open or [self])[0]._line(due=_last_line + _SECONDS_BETWEEN_LINES)

  def describe(self, text: str) -> None:
    """Changes the description."""
    with _lock:
      self._description = text
      if _live is not None and self._task is not None:
        _live.update(self._task, description=text)

  def _line(self, due: float) -> None:
    global _last_line
    now = time.monotonic()
    if now < due:
      return
    _last_line = now
    seconds = max(now - self._begin, 1e-9)
    rate = (self._done - self._start) / seconds
    total = "" if self._total is None else f"/{self._total:g}"
    line = f"{self._description}: {self._done:g}{total} {self._unit}"
    line += f", {_rate(rate, self._unit)}, {_clock(seconds)} elapsed"
    if self._total is not None and rate and self._done < self._total:
      line += f", {_clock((self._total - self._done) / rate)} left"
    print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bar(
  description: str, total: float | None = None, unit: str = "it", start: float = 0
) -> Iterator[Bar]:
  """A progress bar with rate, elapsed time and ETA on stderr.

  Without a terminal the outermost bar prints a line at most every 10 seconds, and one at the end;
  bars inside it are silent.

  Args:
    total: how many units there are; None if nobody knows.
    unit: what is counted, for the rate: "step" gives "12.3 step/s".
    start: units done before, by the run that this one continues; they do not count for the rate.
  """
  shown = Bar(description, total, unit, start)
  if _silent:
    yield shown
    return
  with _lock:
    _enter(shown)
  try:
    yield shown
  finally:
    with _lock:
      _leave(shown)


def _enter(shown: Bar) -> None:
  global _live, _last_line
  if not _open:
    console = Console(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
      _live = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
        console=console,
        expand=True,
      )
      _live.start()
    else:
      _last_line = time.monotonic()
  _open.append(shown)
  if _live is not None:
    shown._task = _live.add_task(
      shown._description, total=shown._total, completed=int(shown._done), unit=shown._unit
    )


def _leave(shown: Bar) -> None:
  if shown not in _open:
    return
  _open.remove(shown)
  if _live is None:
    if not _open:
      shown._line(due=0.0)
  elif _open and shown._task is not None:
    _live.remove_task(shown._task)
  else:
    _close()


@atexit.register
def _close() -> None:
  """Gives the terminal back (cursor, last line); also where Ctrl-C left a loop half way."""
  global _live
  _open.clear()
  if _live is not None:
    live, _live = _live, None
    live.stop()


class _RateColumn(ProgressColumn):
  def render(self, task: Task) -> Text:
    speed = task.finished_speed or task.speed
    return Text("" if speed is None else _rate(speed, task.fields["unit"]), style="cyan")


def _rate(per_second: float, unit: str) -> str:
  digits = 2 if per_second < 10 else 1 if per_second < 100 else 0
  return f"{per_second:,.{digits}f} {unit}/s"


def _clock(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
