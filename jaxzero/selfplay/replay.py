"""The replay store: ArrayRecord shards, one a round and host, committed by a manifest.

Killed at any moment, it opens to exactly the committed rounds: every host's shard is made durable
under its final name, and only then are all of a round entered in `manifest.json` at once. A damaged
shard is found by its SHA-256, set aside in `quarantine/` with the reason beside it, and never
learned from. In a bucket shards are uploaded whole and read through a local cache.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from jaxzero.errors import UserError
from jaxzero.files import (
  DamagedError,
  PathLike,
  as_path,
  cached,
  disk_errors,
  fsync_folder,
  is_bucket,
  make_folder,
  read_bytes,
  remove,
  replacing,
  set_aside,
  sha256_file,
  tree,
  write_atomic,
)
from jaxzero.selfplay.episode import Episode, from_bytes, to_bytes

if TYPE_CHECKING:
  import grain

_MANIFEST_VERSION = 2
# Version 1 knew one shard a round, named without its part.
_SHARD_NAME = re.compile(r"episodes-\d{6,}(-\d{5}-of-\d{5})?\.arrayrecord")


@dataclasses.dataclass(frozen=True)
class ShardInfo:
  """A shard's entry in the manifest: part `part` of the `parts` of a round."""

  name: str
  round: int
  part: int
  parts: int
  episodes: int
  bytes: int
  sha256: str


class ReplayStore:
  """Append-only episodes of a run, by round; one process commits, any number may read.

  Args:
    folder: where the shards are, a local path or gs://; made if missing.
    read_only: changes nothing, so it is safe beside a running writer. Otherwise opening removes
      what a killed writer left uncommitted.
    primary: False for a host that only stages its parts of rounds: it removes and commits nothing.
      The primary must have opened the store before.

  Raises:
    UserError: the manifest is damaged or missing beside shards, or the folder cannot be written.
  """

  def __init__(self, folder: PathLike, read_only: bool = False, primary: bool = True):
    self.folder = as_path(folder)
    self._read_only = read_only
    self._commits = primary and not read_only
    self._shards: list[ShardInfo] = []
    self._figures: dict[str, dict[str, Any]] = {}
    self._quarantined: list[dict[str, Any]] = []
    self._checked: set[ShardInfo] = set()
    self.refresh()
    if self._commits:
      self._remove_leftovers()

  def refresh(self) -> None:
    """Reads the manifest again: what another process has committed since."""
    try:
      manifest = json.loads(read_bytes(self._manifest_path))
      digest = manifest.pop("sha256")
      if digest != _digest(manifest) or manifest["version"] not in (1, _MANIFEST_VERSION):
        raise ValueError
      whole = {"part": 0, "parts": 1}  # what version 1 does not say
      self._shards = [ShardInfo(**{**whole, **entry}) for entry in manifest["shards"]]
      self._figures = manifest.get("figures", {})
      self._quarantined = manifest["quarantined"]
    except FileNotFoundError:
      self._start()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise UserError(
        f"{self._manifest_path} is damaged or of another version than 1 or {_MANIFEST_VERSION}; "
        "put back a good copy, or move the folder away to start without its episodes."
      ) from error

  @property
  def rounds(self) -> list[int]:
    """The committed rounds, ascending."""
    return sorted({shard.round for shard in self._shards})

  @property
  def shards(self) -> list[ShardInfo]:
    """The committed shards, by round and part."""
    return sorted(self._shards, key=lambda shard: (shard.round, shard.part))

  def __len__(self) -> int:
    """The number of episodes in all committed rounds."""
    return sum(shard.episodes for shard in self._shards)

  def figures(self, round: int) -> dict[str, Any] | None:
    """What was committed beside a round; None if the round, or a part of it, is not here."""
    return dict(self._figures.get(str(round), {})) if self._is_whole(round) else None

  def write(self, round: int, episodes: Sequence[Episode]) -> ShardInfo:
    """Commits a round that one host has played; see `stage` and `commit`."""
    self._must_commit()
    shard = self.stage(round, 0, 1, episodes)
    self.commit(round, [shard])
    return shard

  def stage(self, round: int, part: int, parts: int, episodes: Sequence[Episode]) -> ShardInfo:
    """Makes one host's part of a round durable, not committed yet.

    Host p of P hands in the p-th contiguous range of the round, so the order of the episodes does
    not depend on P. The same episodes make the same file, byte for byte.

    Returns:
      what `commit` needs; `dataclasses.asdict` of it is JSON.

    Raises:
      UserError: the round is committed already or negative, there are no episodes, one of them
        cannot be stored, or the disk is full.
    """
    self._must_be_writable()
    self._must_be_new(round)
    if round < 0 or not episodes or not 0 <= part < parts:
      raise UserError(
        f"round {round}, part {part} of {parts}, with {len(episodes)} episodes cannot be stored; "
        "rounds and parts count from 0 and hold at least one episode."
      )
    records = [to_bytes(episode) for episode in episodes]
    path = self.folder / f"episodes-{round:06d}-{part:05d}-of-{parts:05d}.arrayrecord"
    make_folder(self.folder)
    with replacing(path, needed=sum(map(len, records))) as temporary:
      writer = ArrayRecordWriter(str(temporary), "group_size:1")
      for record in records:
        writer.write(record)
      writer.close()
      digest = sha256_file(temporary)
      size = temporary.stat().st_size
    return ShardInfo(path.name, round, part, parts, len(records), size, digest)

  def commit(
    self, round: int, shards: Sequence[ShardInfo], figures: Mapping[str, Any] | None = None
  ) -> None:
    """Enters all parts of a round at once; when it returns, the episodes survive a crash.

    A round that has lost a part to damage is replaced. A host that is not the primary calls it once
    the primary has, to know of the round without reading the manifest again.

    Args:
      figures: JSON to keep beside the round.

    Raises:
      UserError: the round is committed already, the parts are not all of it, or one of them is
        not in this folder.
    """
    self._must_be_writable()
    self._must_be_new(round)
    parts = sorted((shard.round, shard.part, shard.parts) for shard in shards)
    if not shards or parts != [(round, part, len(shards)) for part in range(len(shards))]:
      raise UserError(f"round {round} needs each of its parts once, but got {parts}.")
    others = [shard for shard in self._shards if shard.round != round]
    self._figures = {**self._figures, str(round): dict(figures or {})}
    if not self._commits:
      self._shards = [*others, *shards]
      return
    sizes = tree(self.folder)
    for shard in shards:
      if sizes.get(shard.name) != shard.bytes:
        raise UserError(
          f"{shard.name} of {shard.bytes} bytes is not in {self.folder}; every host must write to "
          "the same folder: use a shared file system or gs://."
        )
    self._write_manifest([*others, *shards], self._quarantined)

  def discard_after(self, round: int) -> list[int]:
    """Drops every later round (a restart goes on from an older checkpoint); returns them."""
    self._must_commit()
    dropped = [later for later in self.rounds if later > round]
    if dropped:
      self._write_manifest([s for s in self._shards if s.round <= round], self._quarantined)
      self._remove_leftovers()
    return dropped

  def verify(self, first: int = 0) -> list[str]:
    """Hashes the committed shards from round `first` on again and sets damaged ones aside.

    Returns:
      one sentence for each shard that was set aside; empty if all is well.
    """
    return self._verify([shard for shard in self.shards if shard.round >= first], fresh=True)

  def episodes(self, round: int) -> Iterator[Episode]:
    """The episodes of a round in the order written; UserError if there is no such round."""
    self._warn_of_damage([round])
    shards = [shard for shard in self.shards if shard.round == round]
    if not shards:
      raise UserError(
        f"{self.folder} has no episodes of round {round}; its rounds are {self.rounds}."
      )
    for shard in shards:
      yield from self.read(shard)

  def read(self, shard: ShardInfo) -> Iterator[Episode]:
    """The episodes of a shard that is not damaged, in the order written."""
    reader = ArrayRecordReader(str(self._local(shard)))
    try:
      for number in range(reader.num_records()):
        yield from_bytes(reader.read([number])[0])
    finally:
      reader.close()

  def damage(self, shard: ShardInfo, fresh: bool = True) -> str | None:
    """What is wrong with a shard, as the end of a sentence, or None; changes nothing.

    Args:
      fresh: in a bucket, look at the object itself, not at a copy in the cache.
    """
    try:
      cached(self.folder / shard.name, shard.sha256, fresh)
    except FileNotFoundError:
      return "is missing"
    except DamagedError as error:
      return str(error)
    except OSError as error:
      if error.errno != errno.EIO:
        raise
      return f"cannot be read ({error.strerror})"
    return None

  def leftovers(self) -> list[str]:
    """Names in the folder that a killed writer left behind, harmless."""
    committed = {shard.name for shard in self._shards}
    return [
      name
      for name in tree(self.folder)
      if (name.startswith(".") and name.endswith(".tmp"))
      or (_SHARD_NAME.fullmatch(name) and name not in committed)
    ]

  def window(self, last_round: int, rounds: int) -> grain.sources.ArrayRecordDataSource:
    """The stored records of rounds `last_round - rounds + 1` to `last_round`.

    A shard is hashed when this store first reads it; a damaged one is set aside with a warning,
    and the window goes without it.

    Returns:
      a random-access source of `len(source)` records (bytes), by round, part and number.

    Raises:
      UserError: the window is empty.
    """
    # Grain imports jax, which takes seconds; writing and verifying do not need it.
    import grain

    self._warn_of_damage(range(last_round - rounds + 1, last_round + 1))
    shards = [s for s in self.shards if last_round - rounds < s.round <= last_round]
    paths = [str(self._local(shard)) for shard in shards]
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

  def _verify(self, shards: Sequence[ShardInfo], fresh: bool = False) -> list[str]:
    damage = []
    for shard in shards:
      reason = self.damage(shard, fresh)
      if reason:
        self._set_aside(shard, reason)
        damage.append(f"{shard.name} (round {shard.round}) {reason}; it was set aside.")
      else:
        self._checked.add(shard)
    return damage

  def _warn_of_damage(self, rounds: Sequence[int]) -> None:
    new = [s for s in self.shards if s.round in rounds and s not in self._checked]
    for sentence in self._verify(new):
      warnings.warn(sentence, stacklevel=3)

  def _local(self, shard: ShardInfo) -> PathLike:
    """The file to read; its bytes were found good before."""
    path = self.folder / shard.name
    return cached(path, shard.sha256) if is_bucket(path) else path

  def _set_aside(self, shard: ShardInfo, reason: str) -> None:
    """Reason, then file, then manifest: killed in between, the next check does the rest."""
    shards = [other for other in self._shards if other != shard]
    if not self._commits:
      self._shards = shards
      return
    quarantine = self.folder / "quarantine"
    set_aside(self.folder / shard.name, quarantine, f"{shard.name} {reason}.\n")
    entry = {**dataclasses.asdict(shard), "reason": reason}
    self._write_manifest(shards, [*self._quarantined, entry])

  def _start(self) -> None:
    """An empty manifest, before any shard: shards without one are a loss, never a leftover."""
    found = [name for name in tree(self.folder) if _SHARD_NAME.fullmatch(name)]
    if found and (self._commits or self._read_only):
      raise UserError(
        f"{self.folder} has {len(found)} shards but no manifest.json; put it back, or move the "
        "folder away to start without its episodes."
      )
    if self._commits:
      make_folder(self.folder)
      self._write_manifest([], [])

  def _write_manifest(self, shards: list[ShardInfo], quarantined: list[dict[str, Any]]) -> None:
    ordered = sorted(shards, key=lambda shard: (shard.round, shard.part))
    rounds = {str(shard.round) for shard in shards}
    self._figures = {round: kept for round, kept in self._figures.items() if round in rounds}
    manifest: dict[str, Any] = {
      "version": _MANIFEST_VERSION,
      "shards": [dataclasses.asdict(shard) for shard in ordered],
      "figures": self._figures,
      "quarantined": quarantined,
    }
    manifest["sha256"] = _digest(manifest)
    write_atomic(self._manifest_path, json.dumps(manifest, indent=1) + "\n")
    self._shards, self._quarantined = ordered, quarantined

  def _remove_leftovers(self) -> None:
    with disk_errors(self.folder):
      for name in self.leftovers():
        remove(self.folder / name)
      fsync_folder(self.folder)

  @property
  def _manifest_path(self) -> PathLike:
    return self.folder / "manifest.json"

  def _is_whole(self, round: int) -> bool:
    here = [shard for shard in self._shards if shard.round == round]
    return bool(here) and len(here) == here[0].parts

  def _must_be_new(self, round: int) -> None:
    if self._is_whole(round):
      count = sum(shard.episodes for shard in self._shards if shard.round == round)
      raise UserError(
        f"round {round} is committed in {self.folder} with {count} episodes; drop it first with "
        "discard_after."
      )

  def _must_be_writable(self) -> None:
    if self._read_only:
      raise UserError(f"the replay store {self.folder} is open for reading only; reopen it.")

  def _must_commit(self) -> None:
    self._must_be_writable()
    if not self._commits:
      raise UserError(f"only the primary host commits to the replay store {self.folder}.")


def _digest(manifest: dict[str, Any]) -> str:
  return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
