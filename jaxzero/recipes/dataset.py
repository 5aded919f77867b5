"""A run's data set for people: its trees, their ends and the improved policies, as Parquet.

docs/data.md tells every column. Each file says in its metadata which task it is of, so what was
exported can be judged again without the run.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, disk_errors, fsync_file, fsync_folder, local_path
from jaxzero.progress import bar
from jaxzero.recipes.card import data_card
from jaxzero.recipes.run import from_dict, load_experiment
from jaxzero.search.record import NO_END, RIGHT, follow, path_to
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.base import Task, TaskConfig
from jaxzero.tasks.transcript import parse_completion
from jaxzero.tokenizers import Tokenizer

if TYPE_CHECKING:
  import pyarrow as pa

FORMAT = 1
TABLES = ("paths", "trees", "moves")
_METADATA = b"jaxzero"


@dataclasses.dataclass(frozen=True)
class Exported:
  """What lies in a folder of exported data."""

  episodes: int
  problems: int
  paths: int
  right: int
  nodes: int
  moves: int


def export_data(run: PathLike, out: PathLike) -> Exported:
  """Writes RUN's whole data set to a new folder: three Parquet files and their card.

  The folder appears whole or not at all. The same run makes the same bytes (with the same pyarrow).

  Raises:
    UserError: no run, no episodes, a folder that is there already, or no pyarrow.
  """
  _, pq = _pyarrow()
  experiment, place = load_experiment(run), as_path(run)
  folder = local_path(out)
  if folder.exists():
    raise UserError(f"{folder} is there already; give another --out, or move it away.")
  episodes = place / "episodes"
  store = ReplayStore(episodes, read_only=True) if episodes.exists() else None
  if store is None or not store.rounds:
    raise UserError(f"{run} has no episodes to export; let its self-play finish a round.")
  tokenizer = Tokenizer.load(place / "tokenizer")
  temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
  about = {
    "format": FORMAT,
    "task": dataclasses.asdict(experiment.task),
    "tokenizer_sha256": tokenizer.fingerprint,
  }
  with disk_errors(folder):
    try:
      temporary.mkdir(parents=True)
      metadata = {_METADATA: json.dumps(about, sort_keys=True).encode()}
      schemas = {name: schema.with_metadata(metadata) for name, schema in _schemas().items()}
      writers = {
        name: pq.ParquetWriter(temporary / f"{name}.parquet", schema, compression="zstd")
        for name, schema in schemas.items()
      }
      counts = _write(store, tokenizer, schemas, writers)
      card = data_card(place.name, experiment, store, counts, _schemas())
      (temporary / "README.md").write_text(card)
      for path in temporary.iterdir():
        fsync_file(path)
      os.rename(temporary, folder)
      fsync_folder(folder.parent)
    except BaseException:
      shutil.rmtree(temporary, ignore_errors=True)
      raise
  return counts


def _write(
  store: ReplayStore, tokenizer: Tokenizer, schemas: dict[str, Any], writers: dict[str, Any]
) -> Exported:
  """Streams the store into the writers, a row group a round, and closes them."""
  pa, _ = _pyarrow()
  totals: collections.Counter[str] = collections.Counter()
  problems: set[str] = set()
  rows_of = {"paths": _paths, "trees": _nodes, "moves": _moves}
  with bar("export", total=len(store), unit="episodes") as progress:
    for round in store.rounds:
      rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
      for episode in store.episodes(round):
        problems.add(episode.problem_id)
        for name in TABLES:
          rows[name] += rows_of[name](episode, tokenizer)
        totals["episodes"] += 1
        progress.advance(1)
      for name, new in rows.items():
        writers[name].write_table(pa.Table.from_pylist(new, schema=schemas[name]))
        totals[name] += len(new)
      totals["right"] += sum(row["right"] for row in rows["paths"])
  for writer in writers.values():
    writer.close()
  return Exported(
    episodes=totals["episodes"],
    problems=len(problems),
    paths=totals["paths"],
    right=totals["right"],
    nodes=totals["trees"],
    moves=totals["moves"],
  )


def _paths(episode: Episode, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
  """A row for every end of the tree, in the order in which they were met."""
  tree = episode.tree
  played = follow(tree, episode.tokens) or [0]
  for node in np.flatnonzero(tree.verdict != NO_END).tolist():
    nodes = path_to(tree, node)
    tokens = tree.token[nodes].tolist()
    completion, finished = parse_completion(tokenizer, tokens)
    yield {
      "episode_id": episode.episode_id,
      "problem_id": episode.problem_id,
      "prompt": episode.prompt,
      "node": node,
      "thinking": list(completion.steps),
      "answer": completion.answer if finished else None,
      "finished": finished,
      "right": bool(tree.verdict[node] == RIGHT),
      "played": node == played[-1],
      "log_prob": float(tree.prior[nodes].sum(dtype=np.float64)),
      "tokens": tokens,
      "value": float(tree.value[nodes[-2] if len(nodes) > 1 else 0]),
      "model_step": episode.model_step,
    }


def _nodes(episode: Episode, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
  tree = episode.tree
  for node, (parent, token, prior, visits, value, verdict) in enumerate(
    zip(*(array.tolist() for array in tree), strict=True)
  ):
    yield {
      "episode_id": episode.episode_id,
      "node": node,
      "parent": parent,
      "token": token if node else -1,
      "text": tokenizer.decode([token], controls=True) if node else "",
      "prior": prior,
      "visits": visits,
      "value": value,
      "verdict": verdict,
    }


def _moves(episode: Episode, tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
  for move, token in enumerate(episode.harvested.tolist()):
    yield {
      "episode_id": episode.episode_id,
      "move": move,
      "token": token,
      "text": tokenizer.decode([token], controls=True),
      "candidates": episode.candidates[move].tolist(),
      "weights": episode.weights[move, :-1].tolist(),
      "rest": float(episode.weights[move, -1]),
      "visits": episode.visit_counts[move].tolist(),
      "value": float(episode.values[move]),
    }


def is_data(folder: PathLike) -> bool:
  """Whether a folder holds exported data rather than a run."""
  return any((as_path(folder) / f"{name}.parquet").exists() for name in TABLES)


def verify_data(folder: PathLike) -> Exported:
  """Reads exported data back and judges every path again by its task.

  Raises:
    UserError: a file is missing or no such Parquet, a verdict is not the task's, or the tables do
      not agree.
  """
  place = local_path(folder)
  tables = {name: _read(place / f"{name}.parquet", name) for name in TABLES}
  task = tasks.make(_task_config(place, tables["paths"]))
  paths, trees = (tables[name].to_pylist() for name in ("paths", "trees"))
  verdicts = {(row["episode_id"], row["node"]): row["verdict"] for row in trees}
  for number, row in enumerate(paths):
    where = f"{place / 'paths.parquet'}: row {number}"
    if _right(task, row, where) != row["right"]:
      raise UserError(f"{where} says right={row['right']}, and the task says otherwise.")
    if verdicts.get((row["episode_id"], row["node"])) != int(row["right"]):
      raise UserError(f"{where} is not an end of its tree in trees.parquet with that verdict.")
  ends = sum(verdict != NO_END for verdict in verdicts.values())
  if ends != len(paths) or len(verdicts) != len(trees):
    raise UserError(
      f"{place}: trees.parquet has {ends} ends in {len(trees)} nodes, paths.parquet {len(paths)} "
      "paths; they are not of one export."
    )
  return Exported(
    episodes=len({row["episode_id"] for row in trees}),
    problems=len({row["problem_id"] for row in paths}),
    paths=len(paths),
    right=sum(row["right"] for row in paths),
    nodes=len(trees),
    moves=tables["moves"].num_rows,
  )


def _right(task: Task, row: dict[str, Any], where: str) -> bool:
  """The task's verdict on a row of paths."""
  try:
    problem = task.parse(row["prompt"])
  except UserError as error:
    raise UserError(f"{where} has no problem of the task ({error})") from error
  if problem.id != row["problem_id"]:
    raise UserError(f"{where}: {row['prompt']!r} is not {row['problem_id']!r}.")
  if row["finished"] and row["answer"] is None:
    raise UserError(f"{where} is finished and has no answer.")
  return bool(row["finished"]) and task.verify(problem, row["answer"], row["thinking"]).right


def _read(path: pathlib.Path, name: str) -> Any:
  pa, pq = _pyarrow()
  try:
    table = pq.read_table(path)
  except FileNotFoundError as error:
    raise UserError(f"{path} is missing; export the data again.") from error
  except (pa.ArrowException, OSError, ValueError) as error:
    reason = " ".join(str(error).split())
    raise UserError(f"{path} is not a whole Parquet file ({reason}).") from error
  if table.schema != _schemas()[name]:
    raise UserError(
      f"{path} has the columns {', '.join(table.schema.names)} of other names or types than "
      "docs/data.md tells; export the data again."
    )
  for column in set(table.column_names) - {"answer"}:
    values = table[column]
    is_list = pa.types.is_list(values.type)
    if values.null_count or (is_list and any(x.flatten().null_count for x in values.chunks)):
      raise UserError(f"{path} has nulls in column {column}, which may hold none; export it again.")
  return table


def _task_config(place: pathlib.Path, table: Any) -> TaskConfig:
  try:
    about = json.loads((table.schema.metadata or {})[_METADATA])
    if about["format"] != FORMAT:
      raise ValueError(f"format {about['format']}")
    return from_dict(TaskConfig, about["task"])
  except (KeyError, TypeError, ValueError) as error:
    raise UserError(
      f"{place / 'paths.parquet'} does not say which task it is of ({error}); export it again."
    ) from error


def _schemas() -> dict[str, pa.Schema]:
  pa, _ = _pyarrow()
  ids, floats, texts = pa.list_(pa.int32()), pa.list_(pa.float32()), pa.list_(pa.string())
  columns = {
    "paths": [
      ("episode_id", pa.string()),
      ("problem_id", pa.string()),
      ("prompt", pa.string()),
      ("node", pa.int32()),
      ("thinking", texts),
      ("answer", pa.string()),
      ("finished", pa.bool_()),
      ("right", pa.bool_()),
      ("played", pa.bool_()),
      ("log_prob", pa.float32()),
      ("tokens", ids),
      ("value", pa.float32()),
      ("model_step", pa.int64()),
    ],
    "trees": [
      ("episode_id", pa.string()),
      ("node", pa.int32()),
      ("parent", pa.int32()),
      ("token", pa.int32()),
      ("text", pa.string()),
      ("prior", pa.float32()),
      ("visits", pa.int32()),
      ("value", pa.float32()),
      ("verdict", pa.int8()),
    ],
    "moves": [
      ("episode_id", pa.string()),
      ("move", pa.int32()),
      ("token", pa.int32()),
      ("text", pa.string()),
      ("candidates", ids),
      ("weights", floats),
      ("rest", pa.float32()),
      ("visits", ids),
      ("value", pa.float32()),
    ],
  }
  return {name: pa.schema(fields) for name, fields in columns.items()}


def _pyarrow() -> tuple[Any, Any]:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError("Parquet needs pyarrow: pip install 'jaxzero[data]'.") from error
  return pyarrow, pyarrow.parquet
