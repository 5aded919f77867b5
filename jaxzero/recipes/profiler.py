"""A profiler's window: jax's trace of a few train steps, for TensorBoard or XProf."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any

import jax

from jaxzero.errors import UserError
from jaxzero.files import disk_errors, local_path


@dataclasses.dataclass(frozen=True)
class Window:
  """Train steps from `start` up to, not with, `stop`."""

  start: int
  stop: int

  @classmethod
  def parse(cls, text: str) -> Window:
    """The window of `START:STOP`; UserError where it is none or holds no step."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    window = cls(int(match[1]), int(match[2])) if match else None
    if window is None or window.start >= window.stop:
      raise UserError(
        f"{text!r} is no window of train steps; give START:STOP with 0 <= START < STOP, such as "
        "10:13 for steps 10, 11 and 12."
      )
    return window

  def __contains__(self, step: int) -> bool:
    return self.start <= step < self.stop


class Profiler:
  """Traces the train steps of a window; every process writes its own trace.

  A training that numbers its steps anew is traced anew, and what a loop does between two steps of
  the window is in the trace.

  Args:
    folder: the run's folder; traces go to `profile/process-I` in it.
    window: None traces nothing.

  Raises:
    UserError: there is a window, but the folder is not on a local disk.
  """

  def __init__(self, folder: pathlib.Path, window: Window | None):
    self._window, self._tracing = window, False
    if window is not None:
      self._folder = local_path(folder) / "profile" / f"process-{jax.process_index()}"

  def step(self, number: int, state: Any) -> jax.profiler.StepTraceAnnotation:
    """Starts or ends the trace where the window does; `with` it goes the train step itself.

    Args:
      number: of the train step that comes next.
      state: arrays that it starts from; at the window's edges they are waited for, so that the
        trace holds all of its steps and nothing of others.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    wanted = self._window is not None and number in self._window
    if wanted != self._tracing:
      jax.block_until_ready(state)
      self._start() if wanted else self.close()
    return jax.profiler.StepTraceAnnotation("train", step_num=number)

  def close(self) -> None:
    """Ends a trace that is still going on, and writes it; call it however the loop ends."""
    if self._tracing:
      self._tracing = False
      with disk_errors(self._folder):
        jax.profiler.stop_trace()

  def _start(self) -> None:
    with disk_errors(self._folder):
      self._folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(self._folder)
    self._tracing = True
