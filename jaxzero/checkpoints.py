"""Orbax checkpoints: items `params`, `optimizer`, `data`, `meta`, with a checksum of every file.

A checkpoint counts once its digest is written; a folder without one is the leftover of a killed
save and is removed. The items are pure nested dicts, so anyone can read them with Orbax alone. On
`gs://` Orbax writes the objects itself, and the digest holds the MD5 that the store has computed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
import re
import warnings
from typing import Any

import jax
from etils import epath
from orbax.checkpoint import v1 as ocp

from jaxzero import buckets
from jaxzero.errors import UserError
from jaxzero.files import (
  PathLike,
  as_path,
  disk_errors,
  fsync_file,
  fsync_folder,
  is_bucket,
  md5_file,
  read_bytes,
  remove,
  require_space,
  set_aside,
  sha256_file,
  tree,
  write_atomic,
)
from jaxzero.parallel.hosts import by_primary, gather_objects, is_primary, jointly

_KEPT = 2  # newest ones: damage to the newest costs one interval of work
_OVERHEAD_BYTES = 4 << 20  # of orbax's own files, generously
_MD5 = "md5:"


class Checkpoints:
  """The checkpoints of one stage of a run: the newest two, and the best by `accuracy` if asked.

  With several processes all of them call `save`, `latest_good`, `check` and `restore` alike, on a
  folder that they share.

  Args:
    folder: a local path or gs://.
  """

  def __init__(self, folder: PathLike, keep_best: bool = False):
    place = as_path(folder)
    self.folder = place if is_bucket(place) else epath.Path(pathlib.Path(place).absolute())
    self.keep_best = keep_best
    self._good: set[int] = set()  # checked before by this object

  def steps(self) -> list[int]:
    """Committed steps, oldest first."""
    with disk_errors(self.folder):
      names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
    found = [re.fullmatch(r"digest-(\d+)\.json", name) for name in names]
    return sorted(int(match[1]) for match in found if match)

  @property
  def latest(self) -> int | None:
    steps = self.steps()
    return steps[-1] if steps else None

  def latest_good(self) -> int | None:
    """The newest step whose files are all as they were saved; the same on every process.

    A damaged step is moved to `quarantine/` with the reason beside it, with a warning, and the next
    older one is tried. None if no step is left.
    """
    for step in reversed(gather_objects(self.steps())[0]):
      reason = self._damage(step)
      if reason is None:
        return step
      by_primary(functools.partial(self._set_aside, step, reason))
      if is_primary():
        sentence = f"the checkpoint {self.folder / str(step)} {reason}; it was set aside."
        warnings.warn(sentence, stacklevel=2)
    return None

  def best(self) -> int | None:
    """The step of the highest accuracy (the first of equals)."""
    accuracies = {step: self._digest(step)["accuracy"] for step in self.steps()}
    return max(accuracies, key=lambda step: (accuracies[step], -step)) if accuracies else None

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
      UserError: the disk or bucket has no room for it, or cannot be written.
    """
    self._good.discard(step)
    by_primary(lambda: self._make_room(step, params, optimizer))
    items = {"params": params, "optimizer": optimizer, "data": data, "meta": meta}
    # A folder made in the background that fails leaves orbax waiting for it, for minutes.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    # Not by orbax's training.Checkpointer: it asks jax whether all hosts are to stop, with step
    # numbers of its own, and then our points (parallel/preemption.py) would miss the answer.
    with ocp.Context(async_options=options), disk_errors(self.folder):
      self._write(self.folder / str(step), items)
    files = self._make_durable(step)
    by_primary(lambda: self._commit(step, accuracy, files))

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
      with disk_errors(self.folder):
        self._must_fit(step, params)
        return ocp.load_checkpointables(self.folder / str(step), target)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
      first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
      raise UserError(self._does_not_fit(step, first)) from error

  def restore_as_saved(self, step: int) -> dict[str, Any]:
    """Loads a step's parameters and optimizer onto this process's first device, whatever they were
    trained on; nested dicts and lists."""
    self.check(step)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    saved = ocp.checkpointables_metadata(self.folder / str(step)).metadata
    target = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
      {name: saved[name] for name in ("params", "optimizer")},
    )
    return ocp.load_checkpointables(self.folder / str(step), target)

  def check(self, step: int) -> None:
    """Compares every file with its checksum; raises UserError naming the first bad one."""
    if step not in self.steps():
      raise UserError(f"there is no checkpoint of step {step} in {self.folder}: {self.steps()}.")
    reason = self._damage(step)
    if reason is not None:
      others = [other for other in self.steps() if other != step]
      remedy = f"delete {self._digest_path(step)} to go on from another step ({others})"
      raise UserError(
        f"the checkpoint {self.folder / str(step)} {reason}; "
        f"{remedy if others else 'no other step is left, put back a good copy of it'}."
      )

  def items(self, step: int) -> list[str]:
    """The names of what a step holds."""
    names = self._digest(step)["files"]
    return sorted({name.split("/")[1] for name in names if name.count("/") > 1})

  def leftovers(self) -> list[str]:
    """Names in the folder that a killed save left behind, harmless."""
    committed = {str(step) for step in self.steps()}
    with disk_errors(self.folder):
      names = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
    unfinished = re.compile(r"\d+|.*\.orbax-checkpoint-tmp.*|\..*\.tmp")
    return sorted(n for n in names if unfinished.fullmatch(n) and n not in committed)

  def remove_uncommitted(self) -> None:
    """Deletes what a killed save left behind."""
    if is_primary():
      with disk_errors(self.folder):
        for name in self.leftovers():
          remove(self.folder / name)

  def damage(self, step: int, part: int = 0, parts: int = 1) -> str | None:
    """What is wrong with a step, as the end of a sentence, or None; changes nothing.

    Args:
      part, parts: hash each `parts`-th file only, from the `part`-th on.
    """
    try:
      files = sorted(self._digest(step)["files"].items())
    except UserError as error:
      return f"has a bad digest ({error})"
    root = self.folder / str(step)
    found = buckets.objects(root) if is_bucket(root) else tree(root)
    for name, expected in files[part::parts]:
      inner = name.removeprefix(f"{step}/")
      if inner not in found:
        return f"is damaged: {inner} is missing"
      try:
        good = _checksum(root / inner, expected, found[inner]) == expected
      except OSError as error:
        return f"is damaged: {inner} cannot be read ({error.strerror or error})"
      if not good:
        return f"is damaged: {inner} is altered"
    return None

  def _damage(self, step: int) -> str | None:
    """`damage`, every process looking at its share of the files; the same on all."""
    if step in self._good:
      return None
    found = gather_objects(self.damage(step, jax.process_index(), jax.process_count()))
    reason = next((reason for reason in found if reason is not None), None)
    if reason is None:
      self._good.add(step)
    return reason

  def _set_aside(self, step: int, reason: str) -> None:
    """Reason, then files, then digest: killed in between, the next look does the rest."""
    quarantine = self.folder / "quarantine"
    set_aside(self.folder / str(step), quarantine, f"step {step} {reason}.\n")
    set_aside(self._digest_path(step), quarantine, f"step {step} {reason}.\n")

  def _make_room(self, step: int, params: Any, optimizer: Any) -> None:
    """Removes what is in the way, and refuses before orbax starts: what its threads say of a full
    disk fills screens, and a bucket's used-up quota (HTTP 507) TensorStore retries for minutes."""
    remove(self._digest_path(step))  # one that is overwritten stops counting first
    self.remove_uncommitted()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves((params, optimizer)))
    require_space(self.folder, needed=size + _OVERHEAD_BYTES)
    if is_bucket(self.folder):
      write_atomic(self.folder / ".writable.tmp", "")

  def _write(self, path: epath.Path, items: dict[str, Any]) -> None:
    for last in (False, False, True):
      try:
        return ocp.save_checkpointables(path, items, overwrite=True)
      except ValueError as error:
        # An object that TensorStore wrote, but whose answer was lost, it takes for another's.
        lost = is_bucket(path) and "ALREADY_EXISTS" in str(error)
        if last or not lost or jax.process_count() > 1:  # others would wait inside of orbax
          raise

  def _commit(self, step: int, accuracy: float, files: dict[str, str]) -> None:
    digest: dict[str, Any] = {"step": step, "accuracy": accuracy, "files": files}
    digest["sha256"] = _sha256(digest)
    write_atomic(self._digest_path(step), json.dumps(digest, indent=1, sort_keys=True))
    self._delete_old()

  def _make_durable(self, step: int) -> dict[str, str]:
    """Flushes what orbax wrote, which it does not; {name in the folder: checksum}.

    Every process flushes and hashes its share of the files; on a bucket the listing has it all.
    """
    root = self.folder / str(step)
    if is_bucket(root):
      listed = buckets.objects(root)
      return {f"{step}/{n}": _MD5 + about["md5Hash"] for n, about in listed.items()}
    names = by_primary(lambda: list(tree(root)))

    def share() -> dict[str, str]:
      mine: dict[str, str] = {}
      with disk_errors(root):
        for name in names[jax.process_index() :: jax.process_count()]:
          fsync_file(root / name)
          mine[f"{step}/{name}"] = sha256_file(root / name)
        folders = {parent for name in names for parent in (root / name).parents}
        for folder in sorted(folders - set(self.folder.parent.parents)):
          fsync_folder(folder)
      return mine

    return {name: digest for part in jointly(share) for name, digest in part.items()}

  def _must_fit(self, step: int, params: Any) -> None:
    """UserError naming the first parameter that is of another shape in the checkpoint."""
    saved = _shapes(ocp.checkpointables_metadata(self.folder / str(step)).metadata["params"])
    wanted = _shapes(params)
    for name in sorted(saved.keys() | wanted.keys()):
      there, here = saved.get(name), wanted.get(name)
      if there != here:
        difference = f"{name} is {there or 'missing'} there and {here or 'missing'} here"
        raise UserError(self._does_not_fit(step, difference))

  def _does_not_fit(self, step: int, why: str) -> str:
    return (
      f"the checkpoint {self.folder / str(step)} does not fit this model ({why}); "
      "use the config it was made with, or another folder."
    )

  def _digest_path(self, step: int) -> epath.Path:
    return self.folder / f"digest-{step}.json"

  def _digest(self, step: int) -> dict[str, Any]:
    path = self._digest_path(step)
    try:
      digest = json.loads(read_bytes(path))
      known = {"step", "accuracy", "files"}
      if set(digest) - {"sha256"} != known or digest["step"] != step:
        raise ValueError
      if digest.get("sha256") not in (None, _sha256({name: digest[name] for name in known})):
        raise ValueError
      return digest
    except (ValueError, TypeError, KeyError) as error:
      raise UserError(f"{path} is damaged; delete it with its step.") from error

  def _delete_old(self) -> None:
    keep = {*self.steps()[-_KEPT:], *([self.best()] if self.keep_best else [])}
    for step in self.steps():
      if step not in keep:
        remove(self._digest_path(step))
    self.remove_uncommitted()


def _sha256(digest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(digest, sort_keys=True).encode()).hexdigest()


def _checksum(path: epath.Path, like: str, about: Any) -> str:
  """Of the kind that `like` is, so that a folder copied to or from a bucket can be checked, too.

  Args:
    about: on a bucket, what its listing says of the object.
  """
  if not is_bucket(path):
    return _MD5 + md5_file(path) if like.startswith(_MD5) else sha256_file(path)
  if like.startswith(_MD5):
    return _MD5 + about["md5Hash"]
  return hashlib.sha256(read_bytes(path)).hexdigest()


def _shapes(params: Any) -> dict[str, list[int]]:
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): list(leaf.shape)
    for path, leaf in leaves
  }
