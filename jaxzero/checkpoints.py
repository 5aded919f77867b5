"""Orbax checkpoints: items `params`, `optimizer`, `data`, `meta`, with a checksum of every file.

A checkpoint counts once its digest is written; a folder without one is the leftover of a killed
save and is removed. The items are pure nested dicts, so anyone can read them with Orbax alone.
"""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

import jax
from orbax.checkpoint import v1 as ocp

from jaxzero.errors import UserError
from jaxzero.files import disk_errors, require_space, sha256_file, write_atomic
from jaxzero.parallel.hosts import barrier, is_primary

_OVERHEAD_BYTES = 4 << 20  # of orbax's own files, generously
_policies = ocp.training.preservation_policies


class Checkpoints:
  """The checkpoints of one stage of a run: the newest, and the best by `accuracy` if asked."""

  def __init__(self, folder: pathlib.Path, keep_best: bool = False):
    self.folder = pathlib.Path(folder).absolute()
    self.keep_best = keep_best

  def steps(self) -> list[int]:
    """Committed steps, oldest first."""
    return sorted(int(path.stem.split("-")[1]) for path in self.folder.glob("digest-*.json"))

  @property
  def latest(self) -> int | None:
    steps = self.steps()
    return steps[-1] if steps else None

  def best(self) -> int | None:
    """The step of the highest accuracy (the first of equals)."""
    steps = self.steps()
    return max(steps, key=lambda step: (self._digest(step)["accuracy"], -step)) if steps else None

  def save(
    self,
    step: int,
    params: Any,
    optimizer: Any,
    data: dict[str, Any],
    meta: dict[str, Any],
    accuracy: float = 0.0,
  ) -> None:
    """Saves and commits one step, then deletes those that are neither newest nor best.

    Args:
      params, optimizer: pytrees of jax.Arrays.
      data, meta: JSON; where the data order stands, and everything else a restart needs.

    Raises:
      UserError: the disk has no room for it, or cannot be written.
    """
    self.remove_uncommitted()
    items = {"params": params, "optimizer": optimizer, "data": data, "meta": meta}
    # Told before orbax starts: what its threads say of a full disk fills screens.
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer)))
    require_space(self.folder, needed=size + _OVERHEAD_BYTES)
    with disk_errors(self.folder), self._open() as checkpointer:
      checkpointer.save_checkpointables(step, items, force=True, overwrite=True)
    if is_primary():
      files = {str(path.relative_to(self.folder)): sha256_file(path) for path in self._files(step)}
      digest = {"step": step, "accuracy": accuracy, "files": files}
      write_atomic(self._digest_path(step), json.dumps(digest, indent=1, sort_keys=True))
      self._delete_old()
    barrier(f"{self.folder.name} checkpoint {step} committed")

  def restore(self, step: int, params: Any, optimizer: Any = None) -> dict[str, Any]:
    """Loads a step; the targets are pytrees of arrays or ShapeDtypeStructs with shardings.

    Raises:
      UserError: a file is missing or altered, or the shapes are of another model.
    """
    self.check(step)
    target = {"params": params, "data": None, "meta": None}
    if optimizer is not None:
      target["optimizer"] = optimizer
    try:
      with self._open() as checkpointer:
        return checkpointer.load_checkpointables(step, target)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
      first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise UserError(
        f"the checkpoint {self.folder / str(step)} does not fit this model ({first}); "
        "use the config it was made with, or another folder."
      ) from error

  def restore_as_saved(self, step: int) -> dict[str, Any]:
    """Loads a step as it was saved, onto the same devices; nested dicts and lists."""
    self.check(step)
    with self._open() as checkpointer:
      return checkpointer.load_checkpointables(step)

  def check(self, step: int) -> None:
    """Compares every file with its checksum; raises UserError naming the first bad one."""
    if not self._digest_path(step).exists():
      raise UserError(f"there is no checkpoint of step {step} in {self.folder}: {self.steps()}.")
    files = self._digest(step)["files"]
    for name, expected in files.items():
      path = self.folder / name
      if not path.exists() or sha256_file(path) != expected:
        state = "altered" if path.exists() else "missing"
        others = [other for other in self.steps() if other != step]
        remedy = f"delete {self._digest_path(step)} to go on from another step ({others})"
        raise UserError(
          f"the checkpoint of step {step} is damaged: {path} is {state}; "
          f"{remedy if others else 'no other step is left, put back a good copy of it'}."
        )

  def remove_uncommitted(self) -> None:
    """Deletes what a killed save left behind."""
    if not self.folder.exists() or not is_primary():
      return
    committed = {str(step) for step in self.steps()}
    for path in self.folder.iterdir():
      if path.is_dir() and path.name not in committed:
        shutil.rmtree(path)

  def _open(self) -> ocp.training.Checkpointer:
    return ocp.training.Checkpointer(self.folder, preservation_policy=_policies.PreserveAll())

  def _files(self, step: int) -> list[pathlib.Path]:
    return sorted(path for path in (self.folder / str(step)).rglob("*") if path.is_file())

  def _digest_path(self, step: int) -> pathlib.Path:
    return self.folder / f"digest-{step}.json"

  def _digest(self, step: int) -> dict[str, Any]:
    try:
      digest = json.loads(self._digest_path(step).read_text())
      if not isinstance(digest, dict) or not {"accuracy", "files"} <= set(digest):
        raise ValueError
      return digest
    except ValueError as error:
      raise UserError(f"{self._digest_path(step)} is damaged; delete it with its step.") from error

  def _delete_old(self) -> None:
    keep = {self.latest} | ({self.best()} if self.keep_best else set())
    for step in self.steps():
      if step not in keep:
        self._digest_path(step).unlink()
    self.remove_uncommitted()
