"""One run at a time in a folder: a file lock on a disk, a lease in a bucket."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from jaxzero.buckets import is_bucket
from jaxzero.errors import UserError
from jaxzero.files import disk_errors, read_bytes, remove, write_atomic

LEASE_S = 90.0
"""A holder that gives no sign of life for so long is taken for dead."""


def lock(folder: Any) -> Callable[[], None]:
  """Holds the folder for this process; returns what gives it back.

  Raises:
    UserError: another process works there, or the folder cannot be written.
  """
  return _lease(folder / ".lock") if is_bucket(folder) else _file_lock(folder / ".lock")


def _file_lock(path: Any) -> Callable[[], None]:
  with disk_errors(path):
    handle = open(path, "w")  # noqa: SIM115 (the lock lasts as long as the file is open)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    raise UserError(_busy(path)) from error
  return handle.close


def _lease(path: Any) -> Callable[[], None]:
  """Clocks of hosts differ, so a lease is alive if it changes while we look."""
  me = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
  before = _content(path)
  if before:
    print(f"jaxzero: {path} is held; waiting up to {LEASE_S:.0f} s for a sign of life.",
          file=sys.stderr)  # fmt: skip
  deadline = time.monotonic() + (LEASE_S if before else 0.0)
  while time.monotonic() < deadline:
    time.sleep(min(2.0, LEASE_S / 10))
    if _content(path) not in (before, ""):
      raise UserError(_busy(path))
  write_atomic(path, f"{me} 0")
  time.sleep(min(1.0, LEASE_S / 10))  # of two that take it at once, the last writer has it
  if not _content(path).startswith(me):
    raise UserError(_busy(path))
  stopped = threading.Event()

  def renew() -> None:
    beat = 0
    while not stopped.wait(LEASE_S / 4):
      beat += 1
      try:
        write_atomic(path, f"{me} {beat}")
      except UserError as error:  # the run will meet it, too
        print(f"jaxzero: the lease was not renewed: {error}", file=sys.stderr)

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()

  def release() -> None:
    stopped.set()
    thread.join()
    remove(path)

  return release


def _content(path: Any) -> str:
  try:
    return read_bytes(path).decode()
  except FileNotFoundError:
    return ""


def _busy(path: Any) -> str:
  return f"another process is working on {path.parent}; wait for it, or use another --run folder."
