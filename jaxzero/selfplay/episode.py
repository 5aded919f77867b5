"""The record of one self-played game: what was played, who won, what the search found and advised.

Stored as msgpack, byte for byte the same for the same episode. P prompt tokens, T tokens of the
completion as played, H tokens of the harvested one, A candidates a move, M nodes of the tree.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import msgpack
import numpy as np

from jaxzero.errors import UserError
from jaxzero.search.record import NO_END, RIGHT, Record, follow

SCHEMA_VERSION = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
  """One game. Two episodes are the same if `to_bytes` is."""

  episode_id: str
  problem_id: str
  prompt: str
  prompt_tokens: np.ndarray  # [P] int32
  tokens: np.ndarray  # [T] int32: the completion as played; it stops where it is known to be lost
  harvested: np.ndarray  # [H] int32: a verified completion found by the search; empty if none
  candidates: np.ndarray  # [H, A] int32: tokens offered at the harvested completion's moves
  weights: np.ndarray  # [H, A + 1] float32: improved policy, last the rest of the vocabulary
  values: np.ndarray  # [H] float32: P(right) by the tree before each move
  visit_counts: np.ndarray  # [H, A] int32
  tree_parent: np.ndarray  # [M] int32: the whole tree, nodes as they were made; -1 at the root
  tree_token: np.ndarray  # [M] int32
  tree_prior: np.ndarray  # [M] float32: log-probability of the token after its parent
  tree_visits: np.ndarray  # [M] int32
  tree_value: np.ndarray  # [M] float32: P(right) by the tree, an end's verdict, or the value head
  tree_verdict: np.ndarray  # [M] int8: -1 no end, 0 wrong or lost, 1 right
  right: bool
  """The verdict of the game as played."""
  truncated: bool
  """It reached the length limit without an end token."""
  forward_tokens: int
  """What the search cost, the prompt not counted."""
  model_step: int
  """The training step of the parameters that played."""
  search: dict[str, Any]
  """The settings of the search, JSON-able."""

  @property
  def tree(self) -> Record:
    return Record(*(getattr(self, f"tree_{name}") for name in Record._fields))


# A1 is A + 1; the letters bind the sizes that must agree.
_ARRAYS: dict[str, tuple[type[np.generic], tuple[str, ...]]] = {
  "prompt_tokens": (np.int32, ("P",)),
  "tokens": (np.int32, ("T",)),
  "harvested": (np.int32, ("H",)),
  "candidates": (np.int32, ("H", "A")),
  "weights": (np.float32, ("H", "A1")),
  "values": (np.float32, ("H",)),
  "visit_counts": (np.int32, ("H", "A")),
  "tree_parent": (np.int32, ("M",)),
  "tree_token": (np.int32, ("M",)),
  "tree_prior": (np.float32, ("M",)),
  "tree_visits": (np.int32, ("M",)),
  "tree_value": (np.float32, ("M",)),
  "tree_verdict": (np.int8, ("M",)),
}
_SCALARS: dict[str, type] = {
  "episode_id": str,
  "problem_id": str,
  "prompt": str,
  "right": bool,
  "truncated": bool,
  "forward_tokens": int,
  "model_step": int,
}
_FIELDS = {"schema_version", "search", *_ARRAYS, *_SCALARS}


def to_bytes(episode: Episode) -> bytes:
  """The episode as msgpack, equal bytes for equal episodes (dict keys are sorted).

  Raises:
    UserError: a field has the wrong dtype, rank or type, or is not JSON-able.
  """
  record: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
  for name in sorted(_SCALARS):
    record[name] = _scalar(name, getattr(episode, name), "the episode to store")
  for name in sorted(_ARRAYS):
    array = _array(name, getattr(episode, name), "the episode to store")
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    record[name] = {
      "dtype": array.dtype.name,
      "shape": list(array.shape),
      "data": little.tobytes(),
    }
  record["search"] = _plain(episode.search, "search")
  try:
    return msgpack.packb(record)
  except (OverflowError, ValueError) as error:
    raise UserError(f"the episode {episode.episode_id} cannot be stored: {error}.") from error


def from_bytes(data: bytes) -> Episode:
  """The episode that `to_bytes` wrote; its arrays are read-only views of `data`.

  Raises:
    UserError: the bytes are not an episode, or one of another schema version.
  """
  try:
    record = msgpack.unpackb(data)
  except (ValueError, msgpack.UnpackException) as error:
    raise UserError(
      f"a record of {len(data)} bytes is not an episode: {error or type(error).__name__}; "
      "it is damaged or from another program."
    ) from error
  where = f"a record of {len(data)} bytes"
  if not isinstance(record, dict) or "schema_version" not in record:
    raise UserError(f"{where} is not an episode: it has no schema_version.")
  if record["schema_version"] != SCHEMA_VERSION:
    raise UserError(
      f"{where} has schema_version {record['schema_version']!r}, this jaxzero reads "
      f"{SCHEMA_VERSION}; use the version that wrote it, or play the episodes again."
    )
  if wrong := sorted(_FIELDS ^ set(record), key=str):
    raise UserError(f"{where} is not an episode: missing or unknown fields {wrong}.")
  if not isinstance(record["search"], dict):
    raise UserError(f"{where}: search is a {type(record['search']).__name__}, not a dict.")
  fields: dict[str, Any] = {"search": record["search"]}
  for name in _SCALARS:
    fields[name] = _scalar(name, record[name], where)
  for name in _ARRAYS:
    fields[name] = _array(name, _decode(name, record[name], where), where)
  return Episode(**fields)


def validate(episode: Episode, vocab_size: int) -> None:
  """Checks what must hold of every episode before it is learned from.

  Raises:
    UserError: sizes disagree; an id is outside the vocabulary; the candidates of a move repeat; its
      weights are negative, not finite or do not sum to 1 within 1e-3; visits are negative; a value
      is outside [0, 1]; a game that was won is not what was harvested; the tree is none, or does
      not hold both games.
  """
  where = f"the episode {episode.episode_id}"
  _check_sizes(episode, where)
  for name in ("prompt_tokens", "tokens", "harvested"):
    _check_ids(name, getattr(episode, name), vocab_size, where)
  _check_ids("candidates", episode.candidates, vocab_size, where)
  ordered = np.sort(episode.candidates, axis=1)
  _reject((ordered[:, 1:] == ordered[:, :-1]).any(1), "candidates repeat", where)
  _reject((episode.visit_counts < 0).any(1), "visit_counts are negative", where)
  _reject(~np.isfinite(episode.weights).all(1), "weights are not finite", where)
  _reject((episode.weights < 0).any(1), "weights are negative", where)
  total = episode.weights.sum(1, dtype=np.float64)
  _reject((abs(total - 1) > 1e-3), "weights do not sum to 1", where)
  values = episode.values
  _reject(~((values >= -1e-3) & (values <= 1 + 1e-3)), "values is outside [0, 1]", where)
  if episode.right and not np.array_equal(episode.tokens, episode.harvested):
    raise UserError(f"{where}: it was won, but its tokens are not the harvested ones.")
  _check_tree(episode, vocab_size, where)


def _check_tree(episode: Episode, vocab_size: int, where: str) -> None:
  tree = episode.tree
  if not len(tree.parent) or tree.parent[0] != -1:
    raise UserError(f"{where}: its tree of {len(tree.parent)} nodes does not begin with a root.")
  _check_ids("tree_token", tree.token, vocab_size, where)
  nodes = np.arange(1, len(tree.parent))
  parent = tree.parent[1:]

  def reject(broken: Any, what: str) -> None:
    _reject(broken, what, where, "node")

  outside = (parent < 0) | (parent >= nodes)
  reject(np.append(False, outside), "its parent does not come before it")
  reject(np.append(False, tree.verdict[parent] != NO_END), "it hangs below an end")
  edges = parent.astype(np.int64) * vocab_size + tree.token[1:]
  twice = np.ones(len(edges), bool)
  twice[np.unique(edges, return_index=True)[1]] = False
  reject(np.append(False, twice), "its parent has another child of the same token")
  reject(~np.isfinite(tree.prior) | (tree.prior > 1e-3), "its prior is no log-probability")
  reject(tree.visits < 0, "its visits are negative")
  reject(~((tree.value >= -1e-3) & (tree.value <= 1 + 1e-3)), "its value is outside [0, 1]")
  reject((tree.verdict < NO_END) | (tree.verdict > RIGHT), "its verdict is none of -1, 0, 1")
  for name in ("tokens", "harvested"):
    path = follow(tree, getattr(episode, name))
    if path is None:
      raise UserError(f"{where}: its tree does not hold the path of its {name}.")
    if name == "harvested" and path and tree.verdict[path[-1]] != RIGHT:
      raise UserError(f"{where}: in its tree the harvested completion does not end right.")


def _check_sizes(episode: Episode, where: str) -> None:
  sizes: dict[str, int] = {}
  for name, (_, letters) in _ARRAYS.items():
    array = _array(name, getattr(episode, name), where)
    for letter, size in zip(letters, array.shape, strict=True):
      if sizes.setdefault(letter, size) != size:
        raise UserError(
          f"{where}: {name} is {list(array.shape)}, but {letter}={sizes[letter]} elsewhere."
        )
  if sizes["A1"] != sizes["A"] + 1:
    raise UserError(
      f"{where}: weights have {sizes['A1']} columns for {sizes['A']} candidates; "
      "one more is needed, for the rest of the vocabulary."
    )


def _check_ids(name: str, ids: np.ndarray, vocab_size: int, where: str) -> None:
  if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
    raise UserError(
      f"{where}: {name} has ids from {ids.min()} to {ids.max()}, outside the vocabulary of "
      f"{vocab_size}."
    )


def _reject(broken: Any, what: str, where: str, unit: str = "move") -> None:
  """`broken` [T] bool: the moves (or nodes) that break the rule."""
  rows = np.asarray(broken)
  if rows.any():
    raise UserError(f"{where}: {unit} {int(np.argmax(rows))} of {len(rows)}: {what}.")


def _scalar(name: str, value: Any, where: str) -> Any:
  if type(value) is not _SCALARS[name]:
    raise UserError(f"{where}: {name} is a {type(value).__name__}, not {_SCALARS[name].__name__}.")
  return value


def _array(name: str, value: Any, where: str) -> np.ndarray:
  dtype, letters = _ARRAYS[name]
  if not isinstance(value, np.ndarray) or value.dtype != dtype or value.ndim != len(letters):
    got = (
      f"{value.dtype} {list(value.shape)}"
      if isinstance(value, np.ndarray)
      else type(value).__name__
    )
    raise UserError(f"{where}: {name} is {got}, not {np.dtype(dtype).name} [{', '.join(letters)}].")
  return value


def _decode(name: str, value: Any, where: str) -> np.ndarray:
  dtype = np.dtype(_ARRAYS[name][0])
  try:
    if value["dtype"] != dtype.name or min(value["shape"], default=0) < 0:
      raise ValueError(f"{value['dtype']} {value['shape']}")
    flat = np.frombuffer(value["data"], dtype.newbyteorder("<"))
    return flat.reshape(value["shape"]).astype(dtype, copy=False)
  except (KeyError, TypeError, ValueError, OverflowError) as error:
    raise UserError(f"{where}: {name} is not an array of {dtype.name}: {error}.") from error


def _plain(value: Any, where: str) -> Any:
  """The same JSON-able value with sorted keys and lists for tuples."""
  if isinstance(value, dict) and all(isinstance(key, str) for key in value):
    return {key: _plain(value[key], f"{where}.{key}") for key in sorted(value)}
  if isinstance(value, list | tuple):
    return [_plain(item, f"{where}[]") for item in value]
  if isinstance(value, float) and not math.isfinite(value):
    raise UserError(f"{where} is {value}, which JSON cannot hold.")
  if value is None or type(value) in (bool, int, float, str):
    return value
  raise UserError(f"{where} is a {type(value).__name__}, which JSON cannot hold.")
