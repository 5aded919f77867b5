"""Goodput: which share of a run's wall-clock time made the model better, and where the rest went.

Phases exclude one another and sum to the time that passed. A session is one process's work on a
run; `goodput.json` in the run's folder sums them, so that work a kill threw away is seen as lost.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import pathlib
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args

import jax

from jaxzero.errors import UserError
from jaxzero.files import write_atomic
from jaxzero.parallel.hosts import is_primary

# stall: the devices wait for the host (batches being built, slower hosts, storage).
Phase = Literal["self_play", "learn", "evaluate", "compile", "checkpoint", "stall", "other"]
PHASES = (*get_args(Phase), "lost")
_GOOD = ("self_play", "learn", "evaluate")
# Each spans what it names once per program, a hit of the persistent cache (its reading) too. What
# jax says of the cache beside them lies inside the last, or is time that did not pass.
_COMPILE_EVENTS = (
  "/jax/core/compile/jaxpr_trace_duration",
  "/jax/core/compile/jaxpr_to_mlir_module_duration",
  "/jax/core/compile/backend_compile_duration",
)


class Goodput:
  """The ledger of a run's seconds; open for one session (`with`), on the thread that works.

  Args:
    folder: the run's folder; holds `goodput.json`, which the primary process writes.
    heartbeat_s: seconds between two writes by `beat`; a kill leaves as much unaccounted for at
      most, which the next session then takes for time down.
    clock, wall: seconds that pass, and seconds since the epoch.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    heartbeat_s: float = 15.0,
    clock: Callable[[], float] = time.monotonic,
    wall: Callable[[], float] = time.time,
  ):
    self._path = folder / "goodput.json"
    self._heartbeat_s, self._clock, self._wall = heartbeat_s, clock, wall
    self._phases: list[str] = ["other"]
    self._compiled: list[tuple[float, float]] = []  # (end, seconds) in the innermost phase
    self._thread = threading.get_ident()
    self.seconds, self.down_s, self.sessions = self._carried_over()
    self._committed = dict(self.seconds)
    self._mark = self._clock()
    self._next_beat = self._mark

  def __enter__(self) -> Goodput:
    jax.monitoring.register_event_duration_secs_listener(self._on_duration)
    return self

  def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
    jax.monitoring.unregister_event_duration_listener(self._on_duration)
    if failure is None:
      self.commit()
      self._write(finished=True)
    else:
      self._settle()
      self.seconds = _without_uncommitted(self.seconds, self._committed)
      self._committed = dict(self.seconds)
      with contextlib.suppress(UserError):  # a full disk must not hide what went wrong
        self._write()

  @contextlib.contextmanager
  def phase(self, name: Phase) -> Iterator[None]:
    """Time inside goes to `name`, and is not counted by the phase around it."""
    self._settle()
    self._phases.append(name)
    self._compiled.clear()
    try:
      yield
    finally:
      self._settle()
      self._phases.pop()
      self._compiled.clear()

  def beat(self) -> None:
    """A sign of life; call it in every loop. Writes at most every `heartbeat_s` seconds."""
    if self._clock() >= self._next_beat:
      with contextlib.suppress(UserError):  # the next checkpoint will tell of a full disk
        self._write()

  def commit(self) -> None:
    """What was done until now can no longer be lost; call it when a checkpoint stands."""
    self._settle()
    self._committed = dict(self.seconds)
    self._write()

  def to_dict(self) -> dict[str, Any]:
    """Seconds by phase and in total, of all sessions; goodput as a share of 1, the second with the
    time down between sessions in its denominator."""
    self._settle()
    total = sum(self.seconds.values())
    good = sum(self.seconds[name] for name in _GOOD)
    return {
      "goodput": good / total if total else 0.0,
      "goodput_with_down": good / (total + self.down_s) if total else 0.0,
      "seconds": dict(self.seconds),
      "total_s": total,
      "down_s": self.down_s,
      "sessions": self.sessions,
    }

  def summary(self) -> str:
    """A table of a few lines: the goodput and every phase that took time."""
    figures = self.to_dict()
    total = figures["total_s"]
    head = f"goodput {figures['goodput']:.1%} of {_text(total)} in {self.sessions} session"
    head += "s" if self.sessions > 1 else ""
    if self.down_s:
      head += f" ({figures['goodput_with_down']:.1%} with {_text(self.down_s)} down between them)"
    lines = [
      f"  {name:<12}{_text(seconds):>18}{seconds / total:>8.1%}"
      for name, seconds in figures["seconds"].items()
      if seconds
    ]
    return "\n".join([head, *lines])

  def _settle(self) -> None:
    """Gives the time since the last call to the phase that is on."""
    now = self._clock()
    self.seconds[self._phases[-1]] += now - self._mark
    self._mark = now

  def _on_duration(self, event: str, duration_secs: float, **_: Any) -> None:
    """Moves the time of a compilation out of the phase that it held up."""
    if event not in _COMPILE_EVENTS or threading.get_ident() != self._thread:
      return
    self._settle()
    begin, alone = self._mark - duration_secs, duration_secs
    while self._compiled and self._compiled[-1][0] > begin:  # inside this one, moved already
      alone -= self._compiled.pop()[1]
    self._compiled.append((self._mark, duration_secs))
    self.seconds[self._phases[-1]] -= alone
    self.seconds["compile"] += alone

  def _write(self, finished: bool = False) -> None:
    self._settle()
    self._next_beat = self._mark + self._heartbeat_s
    record = {
      "sessions": self.sessions,
      "seconds": self.seconds,
      "committed": self._committed,
      "down_s": self.down_s,
      "alive": self._wall(),
      "finished": finished,
    }
    if is_primary():
      write_atomic(self._path, json.dumps(record, indent=1) + "\n")

  def _carried_over(self) -> tuple[dict[str, float], float, int]:
    """Seconds by phase, seconds down and the number of this session, from the sessions before."""
    try:
      record = json.loads(self._path.read_text())
      seconds, committed = (
        {name: float(record[which][name]) for name in PHASES} for which in ("seconds", "committed")
      )
      # Nobody waited for a session after one that had come to its end.
      pause = 0.0 if record["finished"] else max(0.0, self._wall() - float(record["alive"]))
      down_s, sessions = float(record["down_s"]) + pause, int(record["sessions"]) + 1
      return _without_uncommitted(seconds, committed), down_s, sessions
    except FileNotFoundError:
      pass
    except (ValueError, KeyError, TypeError, OverflowError):
      warnings.warn(f"{self._path} is damaged; goodput is counted anew from here.", stacklevel=3)
    return dict.fromkeys(PHASES, 0.0), 0.0, 1


def _without_uncommitted(
  seconds: dict[str, float], committed: dict[str, float]
) -> dict[str, float]:
  """What was done since the last commit as lost: the next session does it again."""
  lost = sum(seconds.values()) - sum(committed.values())
  return {**committed, "lost": committed["lost"] + lost}


def _text(seconds: float) -> str:
  return str(datetime.timedelta(seconds=round(seconds)))
