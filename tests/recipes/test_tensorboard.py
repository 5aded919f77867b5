"""TensorBoard's event files hold what metrics.jsonl holds, no more and no less."""

import struct
import sys

import numpy as np
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event

from jaxzero.errors import UserError
from jaxzero.recipes.tensorboard import TensorBoard


def rows_of(kind, steps, session=0):
  return [
    {
      "kind": kind,
      "step": step,
      "round": step // 10,
      "loss": 1.0 / (step + 1),
      "flops": 1e15 * step + session,
      "episodes": 64,
      "note": "text is no scalar",
      "time": 1.7e9 + 1000 * session + step,
    }
    for step in steps
  ]


def scalars_in(folder):
  """(tag, step, wall time, value) of every scalar of a folder's event files."""
  found = []
  for path in sorted((folder / "tensorboard").iterdir()):
    data, offset = path.read_bytes(), 0
    while offset < len(data):
      (length,) = struct.unpack_from("<Q", data, offset)
      event = Event.FromString(data[offset + 12 : offset + 12 + length])
      offset += 12 + length + 4
      for value in event.summary.value:
        found.append((value.tag, event.step, event.wall_time, value.simple_value))
  return sorted(found)


def scalars_of(rows):
  return sorted(
    (f"{row['kind']}/{name}", row["step"], row["time"], float(np.float32(row[name])))
    for row in rows
    for name in ("loss", "flops", "episodes")
  )


def test_scalars_equal_the_rows_after_every_update(tmp_path):
  board, rows = TensorBoard(tmp_path), []
  for number in range(4):
    rows += rows_of("pretrain", range(3 * number, 3 * number + 3)) + rows_of("round", [number])
    board.update(rows)
    assert scalars_in(tmp_path) == scalars_of(rows)
  board.close()
  assert scalars_in(tmp_path) == scalars_of(rows)


def test_an_update_appends_to_the_file_that_is_there(tmp_path):
  board, rows = TensorBoard(tmp_path), rows_of("pretrain", range(5))
  board.update(rows)
  (file,) = (tmp_path / "tensorboard").iterdir()
  before = file.read_bytes()
  board.update(rows + rows_of("pretrain", [5]))
  assert file.read_bytes().startswith(before) and file.stat().st_size > len(before)


def test_a_rewind_leaves_no_ghosts(tmp_path):
  rows = rows_of("pretrain", range(8))
  killed = TensorBoard(tmp_path)
  killed.update(rows)  # and never closed
  again = rows[:5] + rows_of("pretrain", range(5, 7), session=1)
  board = TensorBoard(tmp_path)
  board.update(again[:5])
  assert scalars_in(tmp_path) == scalars_of(again[:5])
  board.update(again)
  assert scalars_in(tmp_path) == scalars_of(again)
  for shorter_or_other in (again[:2], again[:1] + rows_of("round", [1, 2]), []):
    board.update(shorter_or_other)
    assert scalars_in(tmp_path) == scalars_of(shorter_or_other)


def test_without_the_package_one_line_says_so_and_nothing_is_written(tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "tensorboardX", None)
  board = TensorBoard(tmp_path)
  board.update(rows_of("pretrain", range(3)))
  board.close()
  assert list(tmp_path.iterdir()) == []
  assert capsys.readouterr().err.count("\n") == 1


def test_a_run_in_a_bucket_is_left_out_with_one_line(capsys):
  board = TensorBoard(epath.Path("gs://bucket/run"))
  board.update(rows_of("pretrain", range(3)))
  assert capsys.readouterr().err == (
    "jaxzero: TensorBoard is left out: gs://bucket/run is no local folder; metrics.jsonl has the "
    "rows.\n"
  )


def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("tensorboardX.event_file_writer.EventsWriter.write_event", full)
  with pytest.raises(UserError, match="the disk is full"):
    TensorBoard(tmp_path).update(rows_of("pretrain", range(3)))
