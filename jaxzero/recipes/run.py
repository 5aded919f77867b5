"""A run's folder: its config, tokenizer, metrics, ledger and results, written so that any kill
leaves something the same command continues from."""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import functools
import json
import pathlib
import time
import typing
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from jaxzero import tasks
from jaxzero.errors import UserError
from jaxzero.files import disk_errors, local_path, read_jsonl, write_atomic, write_jsonl
from jaxzero.models.transformer import param_shardings
from jaxzero.parallel.hosts import is_primary, primary_first
from jaxzero.parallel.mesh import batch_shards, make_mesh
from jaxzero.recipes.experiment import Experiment
from jaxzero.search.engine import Engine
from jaxzero.tasks.base import Completion, Problem
from jaxzero.tasks.transcript import encode_completion, encode_prompt
from jaxzero.tokenizers import Tokenizer


class Run:
  """An open run folder; one process at a time may hold it."""

  def __init__(self, folder: pathlib.Path, experiment: Experiment):
    self.folder, self.experiment = local_path(folder), experiment
    # What can be refused is refused before anything is written.
    experiment.check()
    self.task = tasks.make(experiment.task)
    self.mesh: Mesh = make_mesh(experiment.mesh)
    experiment.model.check_mesh(self.mesh.shape)
    _check_batches(experiment, batch_shards(self.mesh))
    if self.folder.exists() and not self.folder.is_dir():
      raise UserError(f"{self.folder} is a file, not a run's folder; use another --run.")
    with disk_errors(self.folder):
      self.folder.mkdir(parents=True, exist_ok=True)
    self._lock = _lock(self.folder)
    with primary_first("run opened"):
      is_new = self._check_config()
      if is_primary() and not is_new:  # in a folder that is no run, they are somebody else's
        for leftover in self.folder.glob(".*.tmp"):
          leftover.unlink()
      self.tokenizer = self._tokenizer()
      self._check_sizes()
      if is_new:
        write_json(self.folder / "config.json", config_dict(experiment))
      if not self._tokenizer_path.exists():
        self.tokenizer.save(self._tokenizer_path.parent)
    self.engine = Engine(
      experiment.model,
      self.tokenizer,
      self.task,
      self.mesh,
      experiment.max_prompt,
      experiment.self_play.play.max_tokens,
    )
    self._rows_on_disk: list[dict[str, Any]] = read_jsonl(self.folder / "metrics.jsonl")
    self.seconds = 0.0
    self._books: dict[str, Any] = {"metrics_rows": 0, "ledger": {}, "seconds": 0.0}
    self.rewind(self._books)

  def __enter__(self) -> Run:
    return self

  def __exit__(self, *_: object) -> None:
    if self._lock is not None:
      self._lock.close()

  @functools.cached_property
  def validation_problems(self) -> list[Problem]:
    return self.task.problems("validation", 0, self.experiment.evaluation.validation_problems)

  @functools.cached_property
  def test_problems(self) -> list[Problem]:
    return self.task.problems("test", 0, self.experiment.evaluation.problems)

  @functools.cached_property
  def worked_texts(self) -> list[tuple[Problem, Completion]]:
    """The worked examples."""
    config = self.experiment
    problems = self.task.problems("train", config.seed, config.task.worked_examples)
    return [(problem, self.task.worked_example(problem)) for problem in problems]

  @functools.cached_property
  def worked_examples(self) -> list[tuple[list[int], list[int]]]:
    """(prompt, completion) token lists of the worked examples."""
    return [
      (encode_prompt(self.tokenizer, problem), encode_completion(self.tokenizer, completion))
      for problem, completion in self.worked_texts
    ]

  def stage(self, name: str, function: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result of a stage: read if it is finished, else done now and written down.

    A stage starts from the books as the one before left them, so one that was killed half-way
    leaves no trace in metrics or ledger.
    """
    done = self._read_result(name)
    if done is None:
      self._seconds_before, self._begin = 0.0, time.monotonic()
      value = function()
      done = {"value": value, "books": self.commit()}
      write_json(self.folder / "results" / f"{name}.json", done)
    self._books = done["books"]
    self.rewind(self._books)
    self.seconds += self._books["seconds"]
    return done["value"]

  def _read_result(self, name: str) -> dict[str, Any] | None:
    path = self.folder / "results" / f"{name}.json"
    if not path.exists():
      return None
    try:
      done = json.loads(path.read_text())
      if not isinstance(done, dict) or set(done) != {"value", "books"}:
        raise ValueError
    except ValueError as error:
      raise UserError(f"{path} is damaged; delete it and its stage is done again.") from error
    return done

  def log(self, **row: Any) -> None:
    """Adds a row of metrics; it reaches the disk with `commit`."""
    self.metrics.append({**row, "time": time.time()})

  def charge(self, stage: str, flops: float, seconds: float, forward_tokens: float) -> None:
    entry = self.ledger.setdefault(stage, {"flops": 0.0, "seconds": 0.0, "forward_tokens": 0.0})
    entry["flops"] += flops
    entry["seconds"] += seconds
    entry["forward_tokens"] += forward_tokens

  def commit(self) -> dict[str, Any]:
    """Writes metrics and ledger; returns what a checkpoint's meta must hold to get back here."""
    if self.metrics != self._rows_on_disk[: len(self.metrics)]:
      if is_primary():
        write_jsonl(self.folder / "metrics.jsonl", self.metrics)
      self._rows_on_disk = list(self.metrics)
    write_json(self.folder / "ledger.json", self.ledger)
    return {
      "metrics_rows": len(self.metrics),
      "ledger": copy.deepcopy(self.ledger),
      "seconds": self._seconds_before + time.monotonic() - self._begin,
    }

  def rewind(self, meta: dict[str, Any]) -> None:
    """Puts metrics, ledger and the stage's clock to where they stood when `commit` said this."""
    self.metrics = self._rows_on_disk[: meta["metrics_rows"]]
    self.ledger: dict[str, dict[str, float]] = copy.deepcopy(meta["ledger"])
    self._seconds_before, self._begin = float(meta["seconds"]), time.monotonic()

  def _check_config(self) -> bool:
    """Whether the folder is new; UserError where it holds another run or something else."""
    path = self.folder / "config.json"
    if not path.exists():
      foreign = [p.name for p in self.folder.iterdir() if not p.name.startswith(".")]
      if foreign:
        raise UserError(
          f"{self.folder} is not empty and holds no run (found {foreign[0]!r}); "
          "use another --run folder."
        )
      return True
    try:
      saved = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(f"{path} is damaged; use another folder for a new run.") from error
    different = sorted(_differences(saved, config_dict(self.experiment)))
    if different:
      shown = ", ".join(different[:4])
      raise UserError(
        f"{self.folder} holds a run of another config (differs in {shown}); give the same "
        "settings to continue it, or another --run folder."
      )
    return False

  @property
  def _tokenizer_path(self) -> pathlib.Path:
    return self.folder / "tokenizer" / "tokenizer.model"

  def _tokenizer(self) -> Tokenizer:
    if self._tokenizer_path.exists():
      return Tokenizer.load(self._tokenizer_path.parent)
    texts = [problem.prompt for problem, _ in self.worked_texts]
    for _, completion in self.worked_texts:
      texts += [*completion.steps, completion.answer]
    return Tokenizer.train(texts)

  def _check_sizes(self) -> None:
    """What takes the tokenizer or the task to tell: enough problems, and whether all fits."""
    experiment, vocab_size = self.experiment, self.tokenizer.vocab_size
    experiment.self_play.play.check(vocab_size)
    experiment.evaluation.tree.check(vocab_size)
    param_shardings(experiment.model, vocab_size, self.mesh)
    _ = self.validation_problems, self.test_problems
    longest = [max(map(len, texts)) for texts in zip(*self.worked_examples, strict=True)]
    limits = {
      "max-prompt": experiment.max_prompt,
      "self-play.play.max-tokens": experiment.self_play.play.max_tokens,
    }
    for (name, limit), size in zip(limits.items(), longest, strict=True):
      if size > limit:
        raise UserError(f"a worked example needs {size} tokens, over --{name}={limit}; raise it.")


def load_experiment(folder: pathlib.Path) -> Experiment:
  """The experiment of an existing run; UserError where there is none or it is damaged."""
  folder = pathlib.Path(folder)
  path = folder / "config.json"
  if not folder.is_dir():
    raise UserError(
      f"there is no run at {folder}; make one with `jaxzero quickstart --run {folder}`."
    )
  if not path.exists():
    raise UserError(f"{folder} holds no run: config.json is missing; check the path.")
  try:
    return from_dict(Experiment, json.loads(path.read_text()))
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f"{path} is damaged or of another version ({error}).") from error


def config_dict(experiment: Experiment) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(cls: type, values: dict[str, Any]) -> Any:
  """The frozen dataclass tree that `dataclasses.asdict` flattened."""
  hints = typing.get_type_hints(cls)
  known = {field.name for field in dataclasses.fields(cls)}
  if not isinstance(values, dict) or (wrong := sorted(known ^ set(values))):
    raise ValueError(
      f"missing or unknown keys {wrong}" if isinstance(values, dict) else "no object"
    )
  kwargs = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(hints[name]):
      value = from_dict(hints[name], value)
    elif isinstance(value, list):
      value = tuple(value)
    kwargs[name] = value
  return cls(**kwargs)


def write_json(path: pathlib.Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  if is_primary():
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
  if isinstance(a, dict) and isinstance(b, dict):
    found = []
    for key in sorted(set(a) | set(b)):
      found += _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else key)
    return found
  return [] if a == b else [f"{prefix}: {a} there, {b} here"]


def _check_batches(experiment: Experiment, shards: int) -> None:
  sizes = {
    "supervised.batch_size": experiment.supervised.batch_size,
    "improve.batch_size / micro_batches": (
      experiment.improve.batch_size // experiment.improve.micro_batches
    ),
  }
  for name, size in sizes.items():
    if size % shards:
      raise UserError(
        f"{name}={size} does not divide over data x fsdp = {shards} devices; use a multiple of "
        f"{shards} or a smaller mesh."
      )


def _lock(folder: pathlib.Path):
  if not is_primary():
    return None
  with disk_errors(folder):
    handle = (folder / ".lock").open("w")
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    raise UserError(
      f"another process is working on {folder}; wait for it or use another folder."
    ) from error
  return handle
