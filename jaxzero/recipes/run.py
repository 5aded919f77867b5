"""A run's folder: its config, tokenizer, metrics, ledger and results, written so that any kill
leaves something the same command continues from."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import json
import sys
import time
import typing
from collections.abc import Callable
from types import TracebackType
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from jaxzero import tasks
from jaxzero.errors import Preempted, UserError
from jaxzero.files import (
  PathLike,
  as_path,
  disk_errors,
  make_folder,
  read_bytes,
  read_jsonl,
  write_atomic,
  write_jsonl,
)
from jaxzero.models.transformer import param_shardings
from jaxzero.parallel import preemption
from jaxzero.parallel.hosts import barrier, by_primary, is_primary, jointly
from jaxzero.parallel.mesh import batch_shards, make_mesh
from jaxzero.parallel.rows import HostRows
from jaxzero.recipes.agree import check_batches, differences, must_agree
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.goodput import Goodput
from jaxzero.recipes.lock import Lock, lock
from jaxzero.recipes.profiler import Profiler, Window
from jaxzero.recipes.tensorboard import TensorBoard
from jaxzero.search.engine import Engine
from jaxzero.tasks.base import Completion, Problem
from jaxzero.tasks.transcript import encode_completion, encode_prompt
from jaxzero.tokenizers import Tokenizer

# How a run is computed, not what: the same command may continue it on other hosts and devices.
_LAYOUT = ("mesh", "improve.micro_batches", "model.remat", "model.scan_layers", "spike_factor")
_SEEN_WITHIN_S = 60.0


class Run:
  """An open run folder, local or in a bucket; one job at a time may hold it.

  Args:
    profile: train steps to trace into RUN/profile.
    tokenizer: a new run's; default: one trained on the worked examples.
  """

  def __init__(
    self,
    folder: PathLike,
    experiment: Experiment,
    profile: Window | None = None,
    tokenizer: Tokenizer | None = None,
  ):
    self.folder, self.experiment = as_path(folder), experiment
    barrier("the opening of the run")  # names who is missing; what comes later waits for all
    settings = {"run": str(self.folder), "profile": str(profile)}
    must_agree({**settings, "config": config_dict(experiment)})
    # What can be refused is refused before anything is written.
    experiment.check()
    self.task = tasks.make(experiment.task)
    self.mesh: Mesh = make_mesh(experiment.mesh)
    experiment.model.check_mesh(self.mesh.shape)
    self.hosts = HostRows(self.mesh)
    self.profiler = Profiler(self.folder, profile)
    check_batches(experiment, batch_shards(self.mesh))
    self._lock: Lock | None = None
    self._given_tokenizer = tokenizer
    try:
      by_primary(self._open)
      jointly(lambda: None if is_primary() else self._open())
    except BaseException:
      self._release()
      raise
    self.engine = Engine(
      experiment.model,
      self.tokenizer,
      self.task,
      self.mesh,
      experiment.max_prompt,
      experiment.self_play.play.max_tokens,
    )
    self._rows_on_disk: list[dict[str, Any]] = read_jsonl(self.folder / "metrics.jsonl")
    self._tensorboard = TensorBoard(self.folder)
    self.goodput = Goodput(self.folder)
    self.seconds = 0.0
    self._books: dict[str, Any] = {"metrics_rows": 0, "ledger": {}, "seconds": 0.0}
    self.rewind(self._books)
    self._say_where()

  def _open(self) -> None:
    """Takes the folder and its tokenizer; the first process makes them."""
    with disk_errors(self.folder):
      self._take_folder()

  def _take_folder(self) -> None:
    if is_primary():
      if self.folder.exists() and not self.folder.is_dir():
        raise UserError(f"{self.folder} is a file, not a run's folder; use another --run.")
      make_folder(self.folder)
      self._lock = lock(self.folder)
    is_new = self._check_config()
    if is_primary() and not is_new:  # in a folder that is no run, they are somebody else's
      for leftover in self.folder.glob(".*.tmp"):
        leftover.unlink()
    self.tokenizer = self._tokenizer()
    self._check_sizes()
    self._write_config()
    if is_primary() and not self._tokenizer_path.exists():
      self.tokenizer.save(self._tokenizer_path.parent)

  def __enter__(self) -> Run:
    self.goodput.__enter__()
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    failure: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with contextlib.ExitStack() as last:
      last.callback(self._release)
      last.push(self.goodput.__exit__)
      last.callback(self._tensorboard.close)
      last.callback(self.profiler.close)
    if is_primary() and (kind is None or kind is Preempted):
      print(self.goodput.summary(), file=sys.stderr)

  def stop_point(self, where: str) -> None:
    """A point that all hosts pass together, where they stop if one of them was told to.

    Raises:
      Preempted: naming `where`; what was not saved before is done again.
    """
    self.goodput.beat()
    if preemption.reached():
      raise Preempted(where)

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
    done = by_primary(lambda: self._read_result(name))
    if done is None:
      self._seconds_before, self._begin = 0.0, time.monotonic()
      value = function()
      done = {"value": value, "books": self.commit()}
      by_primary(lambda: write_json(self.folder / "results" / f"{name}.json", done))
      self.goodput.commit()
    self._books = done["books"]
    self.rewind(self._books)
    self.seconds += self._books["seconds"]
    return done["value"]

  def _read_result(self, name: str) -> dict[str, Any] | None:
    path = self.folder / "results" / f"{name}.json"
    try:
      done = json.loads(read_bytes(path))
      if not isinstance(done, dict) or set(done) != {"value", "books"}:
        raise ValueError
    except ValueError as error:
      raise UserError(f"{path} is damaged; delete it and its stage is done again.") from error
    except FileNotFoundError:
      return None
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
    by_primary(self._write_books)
    self._rows_on_disk = list(self.metrics)
    return {
      "metrics_rows": len(self.metrics),
      "ledger": copy.deepcopy(self.ledger),
      "seconds": self._seconds_before + time.monotonic() - self._begin,
    }

  def _release(self) -> None:
    if self._lock is not None:
      self._lock.release()

  def _write_books(self) -> None:
    if self._lock is not None:
      self._lock.check()
    if self.metrics != self._rows_on_disk[: len(self.metrics)]:
      write_jsonl(self.folder / "metrics.jsonl", self.metrics)
      self._tensorboard.update(self.metrics)
    # A job beside the story (`jaxzero prm`) and the story keep each other's entries.
    path = self.folder / "ledger.json"
    others = json.loads(read_bytes(path)) if path.exists() else {}
    write_json(path, {**others, **self.ledger})

  def rewind(self, meta: dict[str, Any]) -> None:
    """Puts metrics, ledger and the stage's clock to where they stood when `commit` said this."""
    self.metrics = self._rows_on_disk[: meta["metrics_rows"]]
    self.ledger: dict[str, dict[str, float]] = copy.deepcopy(meta["ledger"])
    self._seconds_before, self._begin = float(meta["seconds"]), time.monotonic()

  def go_on(self) -> None:
    """Takes up the books as the last job on this finished run left them."""
    path = self.folder / "ledger.json"
    try:
      ledger = by_primary(lambda: json.loads(read_bytes(path)))
    except (FileNotFoundError, ValueError) as error:
      raise UserError(
        f"{path} is missing or damaged; delete {self.folder / 'results'} and the run's own command "
        "writes it again."
      ) from error
    self.rewind({"metrics_rows": len(self._rows_on_disk), "ledger": ledger, "seconds": 0.0})

  def _check_config(self) -> bool:
    """Whether the folder is new; UserError where it holds another run or something else."""
    path = self.folder / "config.json"
    try:
      saved = config_dict(from_dict(Experiment, json.loads(self._seen(path))))
    except (ValueError, TypeError) as error:
      raise UserError(
        f"{path} is damaged or of another version ({error}); use another folder for a new run."
      ) from error
    except FileNotFoundError:
      if not is_primary():
        raise UserError(
          f"process {jax.process_index()} does not see {path}, which process 0 has written; give a "
          "--run folder that all hosts share, or one in gs://."
        ) from None
      foreign = [p.name for p in self.folder.iterdir() if not p.name.startswith(".")]
      if foreign:
        raise UserError(
          f"{self.folder} is not empty and holds no run (found {foreign[0]!r}); "
          "use another --run folder."
        ) from None
      return True
    different = [
      difference
      for difference in differences(saved, config_dict(self.experiment))
      if not difference.startswith(_LAYOUT)
    ]
    if different:
      shown = ", ".join(different[:4])
      raise UserError(
        f"{self.folder} holds a run of another config (differs in {shown}); give the same "
        "settings to continue it, or another --run folder."
      )
    return False

  def _seen(self, path: epath.Path) -> bytes:
    """A file's bytes; what process 0 has written may take others a while to see (NFS)."""
    deadline = time.monotonic() + (0.0 if is_primary() else _SEEN_WITHIN_S)
    while True:
      try:
        return read_bytes(path)
      except FileNotFoundError:
        if time.monotonic() > deadline:
          raise
      time.sleep(1.0)

  def _write_config(self) -> None:
    text = json.dumps(config_dict(self.experiment), indent=1, sort_keys=True) + "\n"
    path = self.folder / "config.json"
    with contextlib.suppress(FileNotFoundError):
      if not is_primary() or read_bytes(path).decode() == text:
        return
    write_atomic(path, text)

  def _say_where(self) -> None:
    """The line that launchers tell people to look for."""
    if not is_primary():
      return
    sizes = " ".join(f"{axis}={size}" for axis, size in self.mesh.shape.items())
    count, devices = jax.process_count(), jax.devices()
    print(
      f"jaxzero: {count} process{'es' if count > 1 else ''}, {len(devices)} "
      f"device{'s' if len(devices) > 1 else ''} ({devices[0].device_kind}), mesh {sizes}, "
      f"run {self.folder}",
      file=sys.stderr,
      flush=True,
    )

  @property
  def _tokenizer_path(self) -> epath.Path:
    return self.folder / "tokenizer" / "tokenizer.model"

  def _tokenizer(self) -> Tokenizer:
    if self._tokenizer_path.exists():
      return Tokenizer.load(self._tokenizer_path.parent)
    if self._given_tokenizer is not None:
      return self._given_tokenizer
    texts = [problem.prompt for problem, _ in self.worked_texts]
    for _, completion in self.worked_texts:
      texts += [*completion.steps, completion.answer]
    return Tokenizer.train(texts, symbols=self.task.symbols)

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


def load_experiment(folder: PathLike) -> Experiment:
  """The experiment of an existing run; UserError where there is none or it is damaged."""
  place = as_path(folder)
  path = place / "config.json"
  try:
    return from_dict(Experiment, json.loads(read_bytes(path)))
  except FileNotFoundError as error:
    if place.is_dir():
      raise UserError(f"{place} holds no run: config.json is missing; check the path.") from error
    raise UserError(
      f"there is no run at {place}; make one with `jaxzero quickstart --run {place}`."
    ) from error
  except (ValueError, TypeError, KeyError) as error:
    raise UserError(f"{path} is damaged or of another version ({error}).") from error


def config_dict(experiment: Experiment) -> dict[str, Any]:
  return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(cls: type, values: dict[str, Any]) -> Any:
  """The frozen dataclass tree that `dataclasses.asdict` flattened, maybe when it had fewer fields:
  the default of a new field is what was done before there was one."""
  hints = typing.get_type_hints(cls)
  known = {field.name for field in dataclasses.fields(cls)}
  if not isinstance(values, dict) or not values:
    raise ValueError("no settings")
  if unknown := sorted(set(values) - known):
    raise ValueError(f"unknown keys {unknown}")
  kwargs = {}
  for name, value in values.items():
    if dataclasses.is_dataclass(hints[name]):
      value = from_dict(hints[name], value)
    elif isinstance(value, list):
      value = tuple(value)
    kwargs[name] = value
  return cls(**kwargs)


def write_json(path: epath.Path, value: Any) -> None:
  if is_primary():
    make_folder(path.parent)
    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
