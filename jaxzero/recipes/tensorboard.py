"""RUN/tensorboard: the rows of metrics.jsonl as TensorBoard scalars, written anew where they were
rewound, so that a run that was killed leaves no ghosts in the charts."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import sys
from collections.abc import Sequence
from typing import Any

from jaxzero.errors import UserError
from jaxzero.files import disk_errors, local_path
from jaxzero.parallel.hosts import is_primary

_AXES = ("kind", "step", "round", "time")


class TensorBoard:
  """Scalars `kind/metric` at the row's step and time; only the primary process writes.

  Where it cannot be (no tensorboardX, a run in a bucket) one line says so, and nothing is written.

  Args:
    folder: the run's folder.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder: pathlib.Path | None = None
    self._events: Any = None
    self._written: list[dict[str, Any]] = []
    if not is_primary():
      return
    if importlib.util.find_spec("tensorboardX") is None:
      _say("TensorBoard is left out: tensorboardX is missing (pip install 'jaxzero[tensorboard]').")
      return
    try:
      self._folder = local_path(folder) / "tensorboard"
    except UserError:
      _say(f"TensorBoard is left out: {folder} is no local folder; metrics.jsonl has the rows.")

  def update(self, rows: Sequence[dict[str, Any]]) -> None:
    """Makes the scalars those of `rows`, all of the run's: appends what is new since the last
    call, or writes everything anew where they do not go on from it.

    Raises:
      UserError: the disk is full or cannot be written.
    """
    if self._folder is None:
      return
    with disk_errors(self._folder):
      if self._events is None or self._written != list(rows[: len(self._written)]):
        self._start_anew()
      for row in rows[len(self._written) :]:
        self._events.write_event(_event(row))
      self._events.flush()
    self._written = list(rows)

  def close(self) -> None:
    """Closes the event file; the next `update` would write everything anew."""
    if self._events is not None:
      self._events.close()
      self._events = None

  def _start_anew(self) -> None:
    # Not before it is needed: it imports torch where there is one.
    from tensorboardX.event_file_writer import EventsWriter

    assert self._folder is not None
    self.close()
    if self._folder.exists():
      shutil.rmtree(self._folder)
    self._folder.mkdir()
    self._events, self._written = EventsWriter(str(self._folder / "events")), []


def _event(row: dict[str, Any]) -> Any:
  """The row as a tensorboardX Event."""
  from tensorboardX.proto.event_pb2 import Event
  from tensorboardX.proto.summary_pb2 import Summary

  values = [
    Summary.Value(tag=f"{row['kind']}/{name}", simple_value=value)
    for name, value in row.items()
    if name not in _AXES and isinstance(value, int | float)
  ]
  return Event(wall_time=row["time"], step=row.get("step", 0), summary=Summary(value=values))


def _say(sentence: str) -> None:
  print(f"jaxzero: {sentence}", file=sys.stderr)
