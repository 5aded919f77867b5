"""Studies in cells: what is measured under one set of settings is one file, so that a study that
was killed goes on where it was, and one that is asked for more measures only what is new."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxzero.files import PathLike, as_path, make_folder, read_bytes, write_atomic
from jaxzero.parallel.hosts import by_primary


class Cells:
  """A folder of results, each keyed by all the settings that it depends on.

  The first process reads and writes; all of them get the same.
  """

  def __init__(self, folder: PathLike):
    self.folder = as_path(folder)

  def get(self, key: Mapping[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The value of these settings: read where it is whole, else made and written at once.

    Args:
      key: JSON values; equal keys are one cell, whatever their order.
      make: called on every process; returns a JSON object.
    """
    value = by_primary(lambda: self._read(key))
    if value is None:
      value = make()
      by_primary(lambda: self._write(key, value))
    return value

  def has(self, key: Mapping[str, Any]) -> bool:
    """Whether `get` would read this cell."""
    return by_primary(lambda: self._read(key) is not None)

  def path(self, key: Mapping[str, Any]) -> Any:
    """The cell's file: words of the key for people, its hash against mistakes."""
    canonical = json.dumps(key, sort_keys=True)
    words = "-".join(str(value) for _, value in sorted(key.items()) if isinstance(value, str | int))
    slug = re.sub(r"[^A-Za-z0-9]+", "-", words)[:60].strip("-")
    return self.folder / f"{slug}-{hashlib.sha256(canonical.encode()).hexdigest()[:12]}.json"

  def _read(self, key: Mapping[str, Any]) -> dict[str, Any] | None:
    """None: not there, torn, or of another key."""
    try:
      cell = json.loads(read_bytes(self.path(key)))
    except (FileNotFoundError, ValueError):
      return None
    whole = isinstance(cell, dict) and cell.get("key") == json.loads(json.dumps(key))
    return cell.get("value") if whole else None

  def _write(self, key: Mapping[str, Any], value: dict[str, Any]) -> None:
    make_folder(self.folder)
    write_atomic(self.path(key), json.dumps({"key": key, "value": value}, sort_keys=True) + "\n")
