"""Objects in a Google Cloud Storage bucket, `gs://bucket/name`, through gcsfs.

An object appears whole or not at all, and the same bytes uploaded again are the same object: a
write that failed half-way, or whose answer was lost, is repeated. gcsfs does so with a growing
pause for whatever may pass (dropped connections, HTTP 408, 429, 500 to 504); nothing is listed from
memory, because other hosts write, too.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from etils.epath import backend

from jaxzero.errors import UserError

PathLike = str | os.PathLike[str]

_REASONS = {
  400: "the store refuses the request; check the bucket's name",
  401: "no valid credentials; log in with `gcloud auth application-default login`",
  403: "permission denied; give this account the role Storage Object Admin, or use another bucket",
  404: "there is no such bucket; create it or check its name",
  412: "another process has written it; let only one work on this folder",
  429: "the bucket's request quota is used up; wait a little or raise it",
  507: "the bucket's storage quota is used up; delete something or raise it",
}
_UNAVAILABLE = "the store does not answer; try again, what was committed is safe"
# How TensorStore, which Orbax writes with, spells them.
_STATUS = {
  "UNAUTHENTICATED": 401,
  "PERMISSION_DENIED": 403,
  "NOT_FOUND": 404,
  "RESOURCE_EXHAUSTED": 429,
  "UNAVAILABLE": 503,
  "DEADLINE_EXCEEDED": 503,
}


def is_bucket(path: PathLike) -> bool:
  """Whether the path lies in a bucket."""
  return os.fspath(path).startswith("gs://")


def upload(source: PathLike, path: PathLike) -> None:
  """Replaces the object by the local file, whole or not at all; MD5 checked by both sides."""
  with bucket_errors(path):
    _filesystem().put_file(os.fspath(source), os.fspath(path), consistency="md5")


def create(path: PathLike, data: bytes) -> bool:
  """Makes an object where there is none; False where there is one."""
  with bucket_errors(path):
    try:
      _filesystem().pipe_file(os.fspath(path), data, mode="create")
    except FileExistsError:
      return False
  return True


def download(path: PathLike, target: PathLike) -> None:
  """Copies the object to a local file, to be hashed there; FileNotFoundError if it is missing."""
  with bucket_errors(path, missing_ok=True):
    _filesystem().get_file(os.fspath(path), os.fspath(target))


def read(path: PathLike) -> bytes:
  """The object's bytes; FileNotFoundError if it is missing."""
  with bucket_errors(path, missing_ok=True):
    return _filesystem().cat_file(os.fspath(path))


def objects(folder: PathLike) -> dict[str, dict[str, Any]]:
  """What lies below the folder, at any depth: {relative name: `size` in bytes, `md5Hash`}."""
  root = os.fspath(folder).rstrip("/") + "/"
  with bucket_errors(folder):
    found = _filesystem().find(root, detail=True)
  skip = len(root.removeprefix("gs://"))
  return {name[skip:]: about for name, about in found.items() if not name.endswith("/")}


def remove(path: PathLike, recursive: bool = False) -> None:
  """Deletes an object, or all below a folder; what is gone already is no error."""
  with bucket_errors(path, missing_ok=True), contextlib.suppress(FileNotFoundError):
    _filesystem().rm(os.fspath(path), recursive=recursive)


def copy(source: PathLike, target: PathLike) -> None:
  """Copies one object inside the store."""
  with bucket_errors(source, missing_ok=True):
    _filesystem().cp_file(os.fspath(source), os.fspath(target))


@contextlib.contextmanager
def bucket_errors(path: PathLike, missing_ok: bool = False) -> Iterator[None]:
  """Turns what the store refuses, for good or after all retries, into a UserError.

  Args:
    path: named in the sentence.
    missing_ok: let FileNotFoundError pass; otherwise it means that the bucket is missing.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:
    reason = _reason(error)
    if reason is None or (missing_ok and isinstance(error, FileNotFoundError)):
      raise
    raise UserError(f"cannot use {os.fspath(path)}: {reason}.") from error


@functools.cache
def _filesystem():
  try:
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise UserError("paths in gs:// need gcsfs; pip install 'jaxzero[gcs]'.") from error
  # It logs every failed try with a traceback, beside raising it.
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
  filesystem = backend.fsspec_backend.fs("gs://")  # the one of epath's paths, and so of Orbax
  filesystem.dircache.use_listings_cache = False
  filesystem.consistency = "md5"
  return filesystem


def _reason(error: Exception) -> str | None:
  """Why the store failed and what to do, for the exceptions of gcsfs, aiohttp and TensorStore."""
  code = _http_code(error)
  if code in _REASONS:
    return _REASONS[code]
  if code is not None and code >= 500:
    return f"{_UNAVAILABLE} (HTTP {code})"
  kind = type(error)
  if kind.__module__.startswith(("aiohttp", "requests", "google.auth", "gcsfs")):
    return f"{_UNAVAILABLE} ({kind.__name__})"
  return None


def _http_code(error: Exception) -> int | None:
  code = getattr(error, "code", None)
  if isinstance(code, int) or (isinstance(code, str) and code.isdecimal()):
    return int(code)
  if isinstance(error, FileNotFoundError):
    return 404
  if isinstance(error, FileExistsError):
    return 412
  if isinstance(error, OSError) and "Forbidden" in str(error):
    return 403
  if isinstance(error, ValueError | RuntimeError):
    http = re.search(r"http_response_code='(\d+)", str(error))
    status = re.search("|".join(_STATUS), str(error))
    return int(http[1]) if http else _STATUS[status[0]] if status else None
  return None
