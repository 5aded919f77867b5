"""One run at a time in a folder: a file lock on a disk, a lease in a bucket."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import sys
import threading
import time
from typing import Any, Protocol

from jaxzero.buckets import create, is_bucket
from jaxzero.errors import UserError
from jaxzero.files import disk_errors, read_bytes, remove, write_atomic

LEASE_S = 90.0
"""A holder that gives no sign of life for so long is taken for dead."""


class Lock(Protocol):
  def check(self) -> None:
    """Raises UserError where the folder was lost to another process."""

  def release(self) -> None:
    """Gives the folder back."""


def lock(folder: Any) -> Lock:
  """Holds the folder for this process.

  Raises:
    UserError: another process works there, or the folder cannot be written.
  """
  return _Lease(folder / ".lock") if is_bucket(folder) else _FileLock(folder / ".lock")


class _FileLock:
  """The operating system's, which ends with the process."""

  def __init__(self, path: Any):
    with disk_errors(path):
      self._file = open(path, "w")  # noqa: SIM115 (the lock lasts as long as the file is open)
    try:
      fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
      raise UserError(_busy(path)) from error

  def check(self) -> None:
    pass

  def release(self) -> None:
    self._file.close()


class _Lease:
  """A bucket's lock: an object that its holder renews. Clocks of hosts differ, so a lease is alive
  if it changes while we look."""

  def __init__(self, path: Any):
    self.path, self.lost = path, False
    self._me = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    self._stopped = threading.Event()
    self._take()
    self._thread = threading.Thread(target=self._renew, daemon=True)
    self._thread.start()

  def _take(self) -> None:
    before = _content(self.path)
    if before:
      print(f"jaxzero: {self.path} is held; waiting up to {LEASE_S:.0f} s for a sign of life.",
            file=sys.stderr)  # fmt: skip
      deadline = time.monotonic() + LEASE_S
      while time.monotonic() < deadline:
        time.sleep(min(2.0, LEASE_S / 10))
        if _content(self.path) not in (before, ""):
          raise UserError(_busy(self.path))
      remove(self.path)
    # Of two that take it at once, one makes it; an answer that was lost is asked for again.
    if not create(self.path, f"{self._me} 0".encode()) and not self._is_mine():
      raise UserError(_busy(self.path))

  def _renew(self) -> None:
    beat = 0
    while not self._stopped.wait(LEASE_S / 4):
      beat += 1
      try:
        if not self._is_mine():
          self.lost = True
          return
        write_atomic(self.path, f"{self._me} {beat}")
      except Exception as error:  # tried again; if it lasts, the run meets it, too
        print(f"jaxzero: the lease was not renewed: {error}", file=sys.stderr)

  def check(self) -> None:
    if self.lost:
      raise UserError(
        f"another process took over {self.path.parent}, as this one gave no sign of life for "
        f"{LEASE_S:.0f} s; what was committed is safe, let the other one go on."
      )

  def release(self) -> None:
    self._stopped.set()
    self._thread.join()
    if not self.lost and self._is_mine():
      remove(self.path)

  def _is_mine(self) -> bool:
    return _content(self.path).startswith(self._me)


def _content(path: Any) -> str:
  try:
    return read_bytes(path).decode()
  except FileNotFoundError:
    return ""


def _busy(path: Any) -> str:
  return f"another process is working on {path.parent}; wait for it, or use another --run folder."
