"""Durable writes: what a reader finds under a name is always whole, old or new.

A path is a local one or `gs://bucket/name`. Locally a file is replaced by temp file, fsync, rename
and fsync of its folder; in a bucket it is written to a local spool file and uploaded whole.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from jaxzero import buckets
from jaxzero.buckets import PathLike, is_bucket
from jaxzero.errors import UserError

_REMEDIES = {
  errno.ENOSPC: "free some space or choose a folder on another disk",
  errno.EDQUOT: "the disk quota is used up; free some space or choose a folder on another disk",
  errno.ENOTDIR: "a part of the path is a file; choose another folder",
  errno.EISDIR: "there is a folder of that name; move it away or choose another name",
  errno.EROFS: "the file system is read-only; choose a folder that can be written",
  errno.EACCES: "permission denied; change its owner or mode, or choose another folder",
  errno.EIO: "the disk reports an input/output error; choose a folder on another disk",
}
_CACHE_BYTES = 16 << 30
_CACHE_KEEP_S = 3600.0
_DOWNLOADS = 3


class DamagedError(Exception):
  """A file or object whose bytes are not the expected ones; the text says how they differ."""


def as_path(path: PathLike) -> epath.Path:
  """A path that works in a bucket, too; UserError for other stores than Google's.

  `gs:/bucket`, which pathlib makes of `gs://bucket`, is understood.
  """
  text = os.fspath(path)
  scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]+):/+", text)
  if scheme is None:
    return epath.Path(text)
  if scheme[1] != "gs" or not text[scheme.end() :].strip("/"):
    raise UserError(f"{text} is neither a local path nor gs://bucket/path; use one of these.")
  return epath.Path("gs://" + text[scheme.end() :])


def write_atomic(path: PathLike, data: bytes | str) -> None:
  """Replaces the file by `data` (str as UTF-8); after a crash it holds the old or the new bytes.

  Raises:
    UserError: the disk or bucket is full or cannot be written; the old file is untouched.
  """
  data = data.encode() if isinstance(data, str) else data
  with replacing(path, needed=len(data)) as temporary:
    temporary.write_bytes(data)


@contextlib.contextmanager
def replacing(path: PathLike, needed: int | None = None) -> Iterator[pathlib.Path]:
  """Yields the name of a temporary local file to write; it takes the place of `path` at the end.

  If the body raises, the temporary file is removed and `path` is untouched.

  Args:
    path: the file to replace, in an existing local folder or in a bucket.
    needed: bytes about to be written, for the message of a full disk.

  Raises:
    UserError: the disk or bucket is full or cannot be written.
  """
  place = as_path(path)
  if is_bucket(place):
    with tempfile.TemporaryDirectory(prefix="jaxzero-spool-") as spool:
      temporary = pathlib.Path(spool, place.name)
      with disk_errors(temporary, needed):
        yield temporary
      buckets.upload(temporary, place)
    return
  target = pathlib.Path(os.path.realpath(place))  # a link stays one
  temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
  with disk_errors(target, needed):
    try:
      yield temporary
      _fsync(temporary)
      os.replace(temporary, target)
    except BaseException:
      with contextlib.suppress(OSError):
        temporary.unlink()
      raise
    fsync_folder(target.parent)


def fsync_folder(folder: PathLike) -> None:
  """Makes renames and removals in the folder survive a power cut, where its file system can."""
  if is_bucket(folder):
    return
  try:
    _fsync(folder)
  except OSError as error:
    if error.errno not in (errno.EINVAL, errno.ENOTSUP):
      raise


def fsync_file(path: PathLike) -> None:
  """Makes a file that somebody else wrote survive a power cut."""
  if not is_bucket(path):
    _fsync(path)


@contextlib.contextmanager
def disk_errors(path: PathLike, needed: int | None = None) -> Iterator[None]:
  """Turns a full, read-only or forbidden disk or bucket under `path` into a UserError.

  Native writers (ArrayRecord, TensorStore) report these in the text of a RuntimeError or
  ValueError; those are recognized too. Every other exception passes through.
  """
  if is_bucket(path):
    with buckets.bucket_errors(path):
      yield
    return
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
  """Raises UserError where the disk under `path` has fewer than `needed` bytes free.

  A bucket does not tell its room: there the write itself fails, and leaves nothing.
  """
  if not is_bucket(path) and _free_bytes(path) < needed:
    with disk_errors(path, needed):
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def make_folder(folder: PathLike) -> None:
  """Makes a local folder and its parents; a bucket has none.

  Raises:
    UserError: the disk is full or cannot be written.
  """
  if not is_bucket(folder) and not os.path.isdir(folder):
    with disk_errors(folder):
      os.makedirs(folder, exist_ok=True)


def read_bytes(path: PathLike) -> bytes:
  """The file's bytes; FileNotFoundError if it is missing."""
  path = as_path(path)
  return buckets.read(path) if is_bucket(path) else pathlib.Path(path).read_bytes()


def tree(folder: PathLike) -> dict[str, int]:
  """The files below a folder at any depth: {name relative to it: bytes}; empty if it is missing."""
  folder = as_path(folder)
  if is_bucket(folder):
    return {name: int(about["size"]) for name, about in sorted(buckets.objects(folder).items())}
  root = pathlib.Path(folder)
  found = sorted(path for path in root.rglob("*") if path.is_file())
  return {path.relative_to(root).as_posix(): path.stat().st_size for path in found}


def remove(path: PathLike) -> None:
  """Deletes a file, or a folder with all in it; what is gone already is no error."""
  if is_bucket(path):
    buckets.remove(path, recursive=True)
  elif os.path.isdir(path) and not os.path.islink(path):
    shutil.rmtree(path)
  else:
    pathlib.Path(path).unlink(missing_ok=True)


def move(source: PathLike, target: PathLike) -> None:
  """Moves a file or a folder, in the place of what was there; in a bucket, object by object.

  Killed in between, calling it again does the rest.
  """
  if is_bucket(source):
    for tail in [f"/{name}" for name in buckets.objects(source)] or [""]:
      buckets.copy(f"{os.fspath(source)}{tail}", f"{os.fspath(target)}{tail}")
      buckets.remove(f"{os.fspath(source)}{tail}")
    return
  if os.path.isdir(source):
    remove(target)
  os.replace(source, target)
  fsync_folder(pathlib.Path(target).parent)
  fsync_folder(pathlib.Path(source).parent)


def set_aside(path: PathLike, quarantine: PathLike, reason: str) -> None:
  """Moves a damaged file or folder to `quarantine`, the reason beside it, written before.

  Killed in between, calling it again does the rest; found missing then, the first reason stays.
  """
  source, folder = as_path(path), as_path(quarantine)
  make_folder(folder)
  note = folder / f"{source.name}.reason.txt"
  try:
    earlier = read_bytes(note).decode()
  except FileNotFoundError:
    earlier = ""
  if reason not in earlier:
    write_atomic(note, earlier + reason)
  with disk_errors(folder):
    if source.exists():
      move(source, folder / source.name)


def sha256_file(path: PathLike) -> str:
  """The SHA-256 of a local file's bytes, in hexadecimal."""
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


def md5_file(path: PathLike) -> str:
  """The MD5 of a local file's bytes, as stores spell it: in base64."""
  with open(path, "rb") as file:
    return base64.b64encode(hashlib.file_digest(file, "md5").digest()).decode()


def cached(path: PathLike, sha256: str, fresh: bool = False) -> pathlib.Path:
  """A local file with the bytes of an object, proven by their hash; a local path is itself.

  That file lies in `$XDG_CACHE_HOME/jaxzero` (default `~/.cache/jaxzero`), which holds 16 GiB: what
  was used longest ago makes room for the new, but nothing that was used within the last hour. A
  download that is not right is tried three times and never used.

  Args:
    sha256: of the bytes, in hexadecimal.
    fresh: download again, to see whether the object is still good.

  Raises:
    DamagedError: the bytes have another hash, wherever they lie.
    FileNotFoundError: they are missing.
  """
  path = as_path(path)
  if not is_bucket(path):
    _must_hash(pathlib.Path(path), sha256)
    return pathlib.Path(path)
  folder = _cache_folder()
  target = folder / sha256
  if not fresh and target.exists() and sha256_file(target) == sha256:
    os.utime(target)
    return target
  with disk_errors(target):
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{sha256}.{secrets.token_hex(4)}.tmp"
    try:
      for last in (number == _DOWNLOADS - 1 for number in range(_DOWNLOADS)):
        buckets.download(path, temporary)
        try:
          _must_hash(temporary, sha256)
          break
        except DamagedError:
          if last:
            raise
      _make_room(folder)
      os.replace(temporary, target)
    finally:
      temporary.unlink(missing_ok=True)
  return target


def read_jsonl(path: PathLike) -> list[dict[str, Any]]:
  """The objects of a JSON Lines file; a missing file is an empty list.

  A last line that a crash left torn (incomplete and without its newline) is ignored.

  Raises:
    UserError: another line is not a JSON object.
  """
  try:
    lines = read_bytes(path).split(b"\n")
  except FileNotFoundError:
    return []
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
  """The path as pathlib's; UserError for a bucket."""
  if is_bucket(as_path(path)):
    raise UserError(f"{path} is not a local path; give a folder on this machine's disk.")
  return pathlib.Path(path)


def _must_hash(path: pathlib.Path, sha256: str) -> None:
  digest = sha256_file(path)
  if digest != sha256:
    raise DamagedError(f"has sha256 {digest} instead of {sha256}")


def _cache_folder() -> pathlib.Path:
  home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(home, "jaxzero")


def _make_room(folder: pathlib.Path) -> None:
  """Deletes what was used longest ago until the rest is within the bound."""
  found = []
  for path in folder.iterdir():
    with contextlib.suppress(FileNotFoundError):  # other processes make room, too
      about = path.stat()
      found.append((about.st_mtime, about.st_size, path))
  total = sum(size for _, size, _ in found)
  for used, size, path in sorted(found):
    if total <= _CACHE_BYTES or time.time() - used < _CACHE_KEEP_S:
      return
    path.unlink(missing_ok=True)
    total -= size


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
