"""Durable writes of local files: what a reader finds under a name is always whole, old or new."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxzero.errors import UserError

PathLike = str | os.PathLike[str]

_REMEDIES = {
  errno.ENOSPC: "free some space or choose a folder on another disk",
  errno.EDQUOT: "the disk quota is used up; free some space or choose a folder on another disk",
  errno.ENOTDIR: "a part of the path is a file; choose another folder",
  errno.EISDIR: "there is a folder of that name; move it away or choose another name",
  errno.EROFS: "the file system is read-only; choose a folder that can be written",
  errno.EACCES: "permission denied; change its owner or mode, or choose another folder",
}


def write_atomic(path: PathLike, data: bytes | str) -> None:
  """Replaces the file by `data` (str as UTF-8); after a crash it holds the old or the new bytes.

  Raises:
    UserError: the disk is full or cannot be written; the old file is untouched.
  """
  data = data.encode() if isinstance(data, str) else data
  with replacing(path, needed=len(data)) as temporary:
    temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: PathLike, needed: int | None = None) -> Iterator[pathlib.Path]:
  """Yields the name of a temporary file to write; it takes the place of `path` at the end.

  If the body raises, the temporary file is removed and `path` is untouched.

  Args:
    path: the file to replace, in an existing local folder.
    needed: bytes about to be written, for the message of a full disk.

  Raises:
    UserError: the disk is full or cannot be written.
  """
  path = pathlib.Path(os.path.realpath(local_path(path)))  # a link stays one
  temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
  with disk_errors(path, needed):
    try:
      yield temporary
      _fsync(temporary)
      os.replace(temporary, path)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise
    fsync_folder(path.parent)


def fsync_folder(folder: PathLike) -> None:
  """Makes renames and removals in the folder survive a power cut, where its file system can."""
  try:
    _fsync(folder)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise


@contextlib.contextmanager
def disk_errors(path: PathLike, needed: int | None = None) -> Iterator[None]:
  """Turns a full, read-only or forbidden disk under `path` into a UserError.

  Native writers (ArrayRecord, TensorStore) report these in the text of a RuntimeError or
  ValueError; those are recognized too. Every other exception passes through.
  """
  try:
    yield
  except (OSError, RuntimeError, ValueError) as error:
    code = _disk_code(error)
    if code is None:
      raise
    space = ""
    if code == errno.ENOSPC:
      want = f"{needed} bytes are needed and " if needed is not None else ""
      space = f"the disk is full ({want}{_free_bytes(path)} bytes are free); "
    raise UserError(f"cannot write {os.fspath(path)}: {space}{_REMEDIES[code]}.") from error


def require_space(path: PathLike, needed: int) -> None:
  """Raises UserError where the disk under `path` has fewer than `needed` bytes free."""
  if _free_bytes(path) < needed:
    with disk_errors(path, needed):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def sha256_file(path: PathLike) -> str:
  """The SHA-256 of a file's bytes, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
  """The objects of a JSON Lines file; a missing file is an empty list.

  A last line that a crash left torn (incomplete and without its newline) is ignored.

  Raises:
    UserError: another line is not a JSON object.
  """
  path = local_path(path)
  if not path.exists():
    return []
  lines = path.read_bytes().split(b"\n")
  rows: list[dict[str, Any]] = []
  for number, line in enumerate(lines, start=1):
    if not line.strip():
      continue
    try:
      row = json.loads(line)
    except ValueError:
      row = None
    if isinstance(row, dict):
      rows.append(row)
    elif number < len(lines):
      raise UserError(f"{path}: line {number} is not a JSON object; repair or remove that line.")
  return rows


def write_jsonl(path: PathLike, rows: Sequence[Mapping[str, Any]]) -> None:
  """Replaces the file by one JSON object a line, whole or not at all."""
  write_atomic(path, "".join(json.dumps(dict(row), sort_keys=True) + "\n" for row in rows))


def local_path(path: PathLike) -> pathlib.Path:
  """The path as pathlib's; UserError for a bucket, where fsync and rename do not exist."""
  text = os.fspath(path)
  # pathlib makes gs:/bucket of gs://bucket.
  if re.match(r"[a-z][a-z0-9+.-]+:/", text):
    raise UserError(f"{text} is not a local path; give a folder on this machine's disk.")
  return pathlib.Path(text)


def _fsync(path: PathLike) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _disk_code(error: Exception) -> int | None:
  if isinstance(error, OSError):
    return error.errno if error.errno in _REMEDIES else None
  return next((code for code in _REMEDIES if os.strerror(code) in str(error)), None)


def _free_bytes(path: PathLike) -> int:
  folder = pathlib.Path(path).absolute()
  while not folder.exists():
    folder = folder.parent
  return shutil.disk_usage(folder).free
