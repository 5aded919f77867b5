import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest

from jaxzero.errors import UserError
from jaxzero.files import (
  as_path,
  disk_errors,
  read_jsonl,
  replacing,
  sha256_file,
  write_atomic,
  write_jsonl,
)

# Forks children that SIGKILL themselves at the k-th durable step of one write, for every k.
CRASHES = """
import os, pathlib, signal, sys
from jaxzero.files import write_atomic

target = pathlib.Path(sys.argv[1])
calls = 0

def killing(real, at, when):
  def call(*args, **kwargs):
    global calls
    calls += 1
    if calls == at and when == "before":
      os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if calls == at and when == "after":
      os.kill(os.getpid(), signal.SIGKILL)
    return result
  return call

for when in ("before", "after"):
  for at in range(1, 10):
    write_atomic(target, b"old" * 1000)
    pid = os.fork()
    if pid == 0:
      for name in ("open", "fsync", "replace"):
        setattr(os, name, killing(getattr(os, name), at, when))
      write_atomic(target, b"new" * 2000)
      os._exit(0)
    status = os.waitpid(pid, 0)[1]
    data = target.read_bytes()
    assert data in (b"old" * 1000, b"new" * 2000), (when, at, data[:9], len(data))
    if status == 0:
      assert data == b"new" * 2000
      break
    print(when, at, data[:3].decode())
  else:
    raise AssertionError("the child never finished")
"""


def no_space(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("data", [b"", b"\x00\xff", "äöü 6*5=30"])
def test_what_is_written_is_read_and_nothing_else_is_left(tmp_path, data):
  path = tmp_path / "file"
  path.write_bytes(b"older and longer than any new content")
  write_atomic(str(path), data)
  assert path.read_bytes() == (data.encode() if isinstance(data, str) else data)
  assert os.listdir(tmp_path) == ["file"]


def test_a_new_file_has_the_usual_permissions(tmp_path):
  (tmp_path / "plain").write_text("x")
  write_atomic(tmp_path / "durable", "x")
  assert (tmp_path / "durable").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_killed_at_any_step_the_file_is_the_old_or_the_new_one(tmp_path):
  result = subprocess.run(
    [sys.executable, "-c", CRASHES, str(tmp_path / "file")], capture_output=True, text=True
  )
  assert result.returncode == 0, result.stderr
  outcomes = [line.split()[2] for line in result.stdout.splitlines()]
  assert {"old", "new"} == set(outcomes) and len(outcomes) >= 8


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_says_what_is_needed(tmp_path, monkeypatch, call):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  monkeypatch.setattr(os, call, no_space)
  with pytest.raises(UserError, match=rf"{path}.*5000 bytes are needed and \d+ bytes are free"):
    write_atomic(path, b"x" * 5000)
  assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO])
def test_disk_troubles_of_python_and_native_writers_are_one_sentence(code):
  message = os.strerror(code)
  troubles = (
    OSError(code, message),
    RuntimeError(f"write() failed: {message}"),
    ValueError(message),
  )
  for error in troubles:
    with pytest.raises(UserError, match=r"^cannot write /runs/x: [^.]*\.$"), disk_errors("/runs/x"):
      raise error


def test_a_real_full_device_is_recognized():
  full = pytest.raises(UserError, match="disk is full")
  with full, disk_errors("/dev/full"), open("/dev/full", "w") as file:
    file.write("x")


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), FileNotFoundError(2, "gone")])
def test_other_errors_pass_through_and_leave_the_old_file(tmp_path, error):
  path = tmp_path / "file"
  path.write_bytes(b"old")
  with pytest.raises(type(error)) as caught, replacing(path) as temporary:
    temporary.write_bytes(b"half")
    raise error
  assert caught.value is error
  assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_bucket_is_known_even_as_pathlib_spells_it_and_other_stores_are_refused():
  for text in ("gs://bucket/x/y", "gs:/bucket/x/y"):
    assert str(as_path(text)) == "gs://bucket/x/y"
    assert str(as_path(pathlib.Path(text)) / "z") == "gs://bucket/x/y/z"
  with pytest.raises(UserError, match="s3://bucket/x is neither"):
    write_atomic("s3://bucket/x", b"")


def test_sha256_of_a_file(tmp_path):
  (tmp_path / "file").write_bytes(b"abc")
  assert sha256_file(tmp_path / "file").startswith("ba7816bf8f01cfea")


def test_json_lines_round_trip_and_are_the_same_bytes(tmp_path):
  rows = [{"step": 1, "loss": 0.5}, {"text": "a\nb", "none": None}]
  for name, content in (("a", rows), ("b", [dict(reversed(row.items())) for row in rows])):
    write_jsonl(tmp_path / name, content)
  assert read_jsonl(tmp_path / "a") == rows
  assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
  assert read_jsonl(tmp_path / "missing") == []


def test_json_lines_cut_anywhere_keep_every_whole_line(tmp_path):
  path = tmp_path / "rows.jsonl"
  rows = [{"step": i, "äöü": {"x": [i]}} for i in range(3)]
  lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
  data = b"\n".join(lines) + b"\n"
  for cut in range(len(data) + 1):
    path.write_bytes(data[:cut])
    whole = sum(cut >= sum(len(line) + 1 for line in lines[: i + 1]) - 1 for i in range(3))
    assert read_jsonl(path) == rows[:whole]


@pytest.mark.parametrize("line", [b'{"a": ', b"7", b"\xff\xfe"])
def test_a_broken_line_in_the_middle_is_named(tmp_path, line):
  path = tmp_path / "rows.jsonl"
  path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
  with pytest.raises(UserError, match=r"rows.jsonl: line 2 is"):
    read_jsonl(path)
