"""The replay store: one ArrayRecord shard a round of self-play, committed by a manifest.

Killed at any moment, it opens to exactly the committed rounds: a shard is written under another
name, made durable, renamed, and only then entered in `manifest.json`. A damaged shard is found by
its SHA-256, set aside in `quarantine/` with the reason beside it, and never learned from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from jaxzero.errors import UserError
from jaxzero.files import (
  PathLike,
  disk_errors,
  fsync_folder,
  local_path,
  replacing,
  sha256_file,
  write_atomic,
)
from jaxzero.selfplay.episode import Episode, from_bytes, to_bytes

if TYPE_CHECKING:
  import grain

_MANIFEST_VERSION = 1
_SHARD_NAME = re.compile(r"episodes-\d{6,}\.arrayrecord")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
  """A shard's entry in the manifest."""

  name: str
  round: int
  episodes: int
  bytes: int
  sha256: str


class ReplayStore:
  """Append-only episodes of a run, by round; one process writes, any number may read.

  Args:
    folder: where the shards are, a local path; made if missing.
    read_only: changes nothing on disk, so it is safe beside a running writer. Otherwise opening
      removes what a killed writer left uncommitted.

  Raises:
    UserError: the manifest is damaged or missing beside shards, or the folder cannot be written.
  """

  def __init__(self, folder: PathLike, read_only: bool = False):
    self.folder = local_path(folder)
    self._read_only = read_only
    self._shards: dict[int, ShardInfo] = {}
    self._quarantined: list[dict[str, Any]] = []
    self._checked: set[ShardInfo] = set()
    self._load()
    if not read_only:
      self._remove_leftovers()

  @property
  def rounds(self) -> list[int]:
    """The committed rounds, ascending."""
    return sorted(self._shards)

  @property
  def shards(self) -> list[ShardInfo]:
    """The committed shards, by round."""
    return [self._shards[round] for round in self.rounds]

  def __len__(self) -> int:
    """The number of episodes in all committed rounds."""
    return sum(shard.episodes for shard in self._shards.values())

  def write(self, round: int, episodes: Sequence[Episode]) -> ShardInfo:
    """Commits a round; when it returns, the episodes survive a crash.

    The same episodes make the same file, byte for byte.

    Raises:
      UserError: the round is committed already or negative, there are no episodes, one of them
        cannot be stored, or the disk is full.
    """
    self._must_be_writable()
    if round in self._shards:
      raise UserError(
        f"round {round} is committed in {self.folder} with {self._shards[round].episodes} "
        "episodes; drop it first with discard_after."
      )
    if round < 0 or not episodes:
      raise UserError(
        f"round {round} with {len(episodes)} episodes cannot be stored; "
        "rounds count from 0 and hold at least one episode."
      )
    records = [to_bytes(episode) for episode in episodes]
    path = self.folder / f"episodes-{round:06d}.arrayrecord"
    with replacing(path, needed=sum(map(len, records))) as temporary:
      writer = ArrayRecordWriter(str(temporary), "group_size:1")
      for record in records:
        writer.write(record)
      writer.close()
      digest = sha256_file(temporary)
      size = temporary.stat().st_size
    shard = ShardInfo(path.name, round, len(records), size, digest)
    self._commit({**self._shards, round: shard}, self._quarantined)
    self._checked.add(shard)
    return shard

  def discard_after(self, round: int) -> list[int]:
    """Drops every later round (a restart goes on from an older checkpoint); returns them."""
    self._must_be_writable()
    dropped = [shard for shard in self.shards if shard.round > round]
    if dropped:
      self._commit({r: s for r, s in self._shards.items() if r <= round}, self._quarantined)
      self._remove_leftovers()
    return [shard.round for shard in dropped]

  def verify(self) -> list[str]:
    """Hashes every committed shard again and sets damaged ones aside.

    Returns:
      one sentence for each shard that was set aside; empty if all is well.
    """
    return self._verify(self.shards)

  def episodes(self, round: int) -> Iterator[Episode]:
    """The episodes of a round in the order written; UserError if there is no such round."""
    self._warn_of_damage([round])
    if round not in self._shards:
      raise UserError(
        f"{self.folder} has no episodes of round {round}; its rounds are {self.rounds}."
      )
    reader = ArrayRecordReader(str(self.folder / self._shards[round].name))
    try:
      for number in range(reader.num_records()):
        yield from_bytes(reader.read([number])[0])
    finally:
      reader.close()

  def window(self, last_round: int, rounds: int) -> grain.sources.ArrayRecordDataSource:
    """The stored records of rounds `last_round - rounds + 1` to `last_round`.

    A shard is hashed when this store first reads it; a damaged one is set aside with a warning,
    and the window goes without it.

    Returns:
      a random-access source of `len(source)` records (bytes), by round and then by number.

    Raises:
      UserError: the window is empty.
    """
    # Grain imports jax, which takes seconds; writing and verifying do not need it.
    import grain

    self._warn_of_damage(range(last_round - rounds + 1, last_round + 1))
    shards = [s for s in self.shards if last_round - rounds < s.round <= last_round]
    paths = [str(self.folder / shard.name) for shard in shards]
    if not paths:
      raise UserError(
        f"{self.folder} has no episodes in a window of {rounds} rounds up to round {last_round}; "
        f"its rounds are {self.rounds}."
      )
    return grain.sources.ArrayRecordDataSource(paths)

  @staticmethod
  def sampler(
    source: grain.sources.ArrayRecordDataSource, seed: int | Sequence[int]
  ) -> grain.MapDataset[Episode]:
    """An endless shuffled sequence of episodes: item i is a pure function of (source, seed, i).

    Step s of batches of B takes items s * B to s * B + B - 1. Every len(source) items each
    episode comes once, in an order of its own; seeds are hashed, so near ones are unrelated.
    """
    import grain

    mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return grain.MapDataset.source(source).shuffle(seed=mixed).repeat().map(from_bytes)

  def _verify(self, shards: Sequence[ShardInfo]) -> list[str]:
    damage = []
    for shard in shards:
      reason = self._damage(shard)
      if reason:
        self._set_aside(shard, reason)
        damage.append(f"{shard.name} (round {shard.round}) {reason}; it was set aside.")
      else:
        self._checked.add(shard)
    return damage

  def _warn_of_damage(self, rounds: Sequence[int]) -> None:
    shards = [self._shards[round] for round in rounds if round in self._shards]
    for sentence in self._verify([shard for shard in shards if shard not in self._checked]):
      warnings.warn(sentence, stacklevel=3)

  def _damage(self, shard: ShardInfo) -> str | None:
    path = self.folder / shard.name
    if not path.exists():
      return "is missing"
    if path.stat().st_size != shard.bytes:
      return f"has {path.stat().st_size} bytes instead of {shard.bytes}"
    digest = sha256_file(path)
    return None if digest == shard.sha256 else f"has sha256 {digest} instead of {shard.sha256}"

  def _set_aside(self, shard: ShardInfo, reason: str) -> None:
    """Reason, then file, then manifest: killed in between, the next check does the rest."""
    shards = {r: s for r, s in self._shards.items() if s != shard}
    if self._read_only:
      self._shards = shards
      return
    quarantine = self.folder / "quarantine"
    with disk_errors(quarantine):
      quarantine.mkdir(exist_ok=True)
      note = quarantine / f"{shard.name}.reason.txt"
      # Killed after the move, the shard is found missing: the first reason is the true one.
      earlier = note.read_text() if note.exists() else ""
      sentence = f"{shard.name} {reason}.\n"
      if sentence not in earlier:
        write_atomic(note, earlier + sentence)
      if (self.folder / shard.name).exists():
        os.replace(self.folder / shard.name, quarantine / shard.name)
        fsync_folder(quarantine)
        fsync_folder(self.folder)
    entry = {**dataclasses.asdict(shard), "reason": reason}
    self._commit(shards, [*self._quarantined, entry])

  def _load(self) -> None:
    path = self._manifest_path
    if not path.exists():
      self._start()
      return
    try:
      manifest = json.loads(path.read_bytes())
      digest = manifest.pop("sha256")
      if digest != _digest(manifest) or manifest["version"] != _MANIFEST_VERSION:
        raise ValueError
      shards = [ShardInfo(**entry) for entry in manifest["shards"]]
      self._shards = {shard.round: shard for shard in shards}
      self._quarantined = manifest["quarantined"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f"{path} is damaged or of another version than {_MANIFEST_VERSION}; put back a good copy, "
        "or move the folder away to start without its episodes."
      ) from error

  def _start(self) -> None:
    """An empty manifest, before any shard: shards without one are a loss, never a leftover."""
    found = [path.name for path in self._files() if _SHARD_NAME.fullmatch(path.name)]
    if found:
      raise UserError(
        f"{self.folder} has {len(found)} shards but no manifest.json; put it back, or move the "
        "folder away to start without its episodes."
      )
    if not self._read_only:
      with disk_errors(self.folder):
        self.folder.mkdir(parents=True, exist_ok=True)
      self._commit({}, [])

  def _commit(self, shards: dict[int, ShardInfo], quarantined: list[dict[str, Any]]) -> None:
    manifest: dict[str, Any] = {
      "version": _MANIFEST_VERSION,
      "shards": [dataclasses.asdict(shards[round]) for round in sorted(shards)],
      "quarantined": quarantined,
    }
    manifest["sha256"] = _digest(manifest)
    write_atomic(self._manifest_path, json.dumps(manifest, indent=1) + "\n")
    self._shards, self._quarantined = shards, quarantined

  def _remove_leftovers(self) -> None:
    committed = {shard.name for shard in self._shards.values()}
    with disk_errors(self.folder):
      for path in self._files():
        unfinished = path.name.startswith(".") and path.name.endswith(".tmp")
        if unfinished or (_SHARD_NAME.fullmatch(path.name) and path.name not in committed):
          path.unlink()
      fsync_folder(self.folder)

  def _files(self) -> list[pathlib.Path]:
    return sorted(self.folder.iterdir()) if self.folder.exists() else []

  @property
  def _manifest_path(self) -> pathlib.Path:
    return self.folder / "manifest.json"

  def _must_be_writable(self) -> None:
    if self._read_only:
      raise UserError(f"the replay store {self.folder} is open for reading only; reopen it.")


def _digest(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
