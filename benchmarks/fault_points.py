"""Named points at which a program that writes a run can be made to fail, and a short such program.

A point is `when operation file`, such as `before rename manifest`: before or after every write,
fsync, rename, removal, folder made and upload, and halfway through a write. `faults.py` and the
tests run this file as a child; `FAULT` says which point fails, which time it is reached, and how:

  FAULT="before rename manifest:2:kill" python -m benchmarks.fault_points FOLDER ACKNOWLEDGED
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import functools
import json
import os
import pathlib
import re
import runpy
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

SMOKE = pathlib.Path(__file__).parent.parent / "configs" / "smoke.py"
ERRORS = {"full": errno.ENOSPC, "broken": errno.EIO}
_KINDS = {
  r"episodes-.*\.arrayrecord": "shard",
  r"digest-.*\.json": "digest",
  r".*\.reason\.txt": "reason",
  r"[a-z_]+\.(json|jsonl|model)": "{}",
}


def kind(path: Any) -> str:
  """What sort of file a path is, whatever its step, round or temporary name."""
  text = os.fspath(path)
  if not isinstance(text, str):
    return "file"
  name = re.sub(r"^\.(.*)\.[0-9a-f]{8}\.tmp$", r"\1", os.path.basename(text))
  if re.search(r"/checkpoints/\w+/[^/]*\d", text) and not name.startswith("digest-"):
    return "orbax"
  if "/results/" in text:
    return "result"
  for pattern, said in _KINDS.items():
    if re.fullmatch(pattern, name):
      return said.format(name)
  return "folder" if os.path.isdir(text) else "file"


class Faults:
  """Wraps the operating system's writing functions, for paths below `root`."""

  def __init__(self, root: pathlib.Path, fault: str, reached: pathlib.Path | None):
    self.root, self.reached = os.fspath(root), reached
    self.name, number, self.action = fault.rsplit(":", 2) if fault else ("", "0", "")
    self.number, self.counts = int(number), collections.Counter[str]()
    self._lock = threading.RLock()

  def install(self) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    import jaxzero.selfplay.replay as replay
    from jaxzero import buckets

    for module, name, operation in (
      (os, "replace", "rename"),
      (os, "rename", "rename"),
      (os, "unlink", "remove"),
      (os, "remove", "remove"),
      (os, "mkdir", "make"),
      (os, "fsync", "fsync"),
      (buckets, "upload", "upload"),
    ):
      setattr(module, name, self._around(operation, getattr(module, name)))
    pathlib.Path.write_bytes = self._writing(pathlib.Path.write_bytes)

    class Writer:
      """ArrayRecord's writer, whose native code writes unseen."""

      def __init__(writer, path: str, options: str):
        writer.path, writer.inner = path, ArrayRecordWriter(path, options)

      def write(writer, record: bytes) -> None:
        self.at("before", "write", writer.path)
        writer.inner.write(record)

      def close(writer) -> None:
        self.at("half", "write", writer.path)
        writer.inner.close()
        self.at("after", "write", writer.path)

    replay.ArrayRecordWriter = Writer

  def at(self, when: str, operation: str, path: Any) -> None:
    """A point is reached: fails there, if this is the one."""
    with contextlib.suppress(OSError):
      path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else os.fspath(path)
    if not str(path).startswith(self.root):
      return
    name = f"{when} {operation} {kind(path)}"
    with self._lock:
      self.counts[name] += 1
      hit = name == self.name and self.counts[name] == self.number
      if hit and "FIRED" in os.environ:
        with open(os.environ["FIRED"], "w") as file:
          file.write(name)
      if self.reached:
        with open(self.reached, "a") as file:
          file.write(name + "\n")
    if hit and self.action == "kill":
      os.kill(os.getpid(), signal.SIGKILL)
    if hit and self.action == "stop":
      os.kill(os.getpid(), signal.SIGTERM)
    elif hit:
      raise OSError(ERRORS[self.action], os.strerror(ERRORS[self.action]), str(path))

  def _around(self, operation: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(path: Any, *rest: Any, **options: Any) -> Any:
      target = rest[0] if operation in ("rename", "upload") else path
      if options.get("dir_fd") is not None:  # rmtree: a name below an open folder
        target = os.path.join(os.readlink(f"/proc/self/fd/{options['dir_fd']}"), path)
      self.at("before", operation, target)
      result = function(path, *rest, **options)
      self.at("after", operation, target)
      return result

    return wrapped

  def _writing(self, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(path: pathlib.Path, data: bytes) -> int:
      self.at("before", "write", path)
      function(path, data[: len(data) // 2])
      self.at("half", "write", path)
      result = function(path, data)
      self.at("after", "write", path)
      return result

    return wrapped


def drill(folder: pathlib.Path, acknowledged: pathlib.Path) -> None:
  """The stages of a run as they are, with a model of three numbers and games out of the books.

  Every episode and checkpoint is entered in `acknowledged` once the run says that it is safe.
  """
  from jaxzero.checkpoints import Checkpoints
  from jaxzero.parallel import preemption
  from jaxzero.recipes import improve, stages
  from jaxzero.recipes.run import Run
  from jaxzero.selfplay.replay import ReplayStore

  for module in (stages, improve):
    module.Trainer, module.validate = Trainer, lambda *_: 0.5
  improve.play_round = play_round
  stages.load_params = lambda *_, **__: {"weight": None}

  def acknowledging(function: Callable[..., Any], entry: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(self: Any, *arguments: Any, **options: Any) -> Any:
      result = function(self, *arguments, **options)
      with open(acknowledged, "a") as file:
        file.write(json.dumps(entry(self, *arguments)) + "\n")
      return result

    return wrapped

  ReplayStore.commit = acknowledging(
    ReplayStore.commit, lambda _, round, shards, *__: {s.name: s.sha256 for s in shards}
  )
  Checkpoints.save = acknowledging(
    Checkpoints.save, lambda self, step, *_: {self.folder.name: step}
  )
  preemption.listen()
  with Run(folder, config()) as run:
    run.stage("supervised", lambda: {"done": bool(stages.fit_supervised(run, "pretrain"))})
    run.stage("self_play", lambda: {"done": bool(improve.improve(run, Trainer.params()))})


def config() -> Any:
  smoke = runpy.run_path(str(SMOKE))["config"]
  return dataclasses.replace(
    smoke,
    task=dataclasses.replace(smoke.task, worked_examples=40),
    supervised=dataclasses.replace(smoke.supervised, steps=6, evaluate_every=3, batch_size=4),
    self_play=dataclasses.replace(smoke.self_play, episodes_per_round=4, batch_size=4),
    improve=dataclasses.replace(
      smoke.improve, rounds=3, steps_per_round=2, batch_size=4, evaluate_every=2
    ),
    evaluation=dataclasses.replace(smoke.evaluation, problems=4, validation_problems=4),
  )


class Trainer:
  """Stands for the trainer: a step adds what the batch's tokens sum to."""

  def __init__(self, *_: Any):
    import jax

    from jaxzero.learn.losses import LossConfig

    self.loss = LossConfig()
    self.shardings = jax.tree.map(lambda x: x.sharding, self.init(None))

  @staticmethod
  def params() -> Any:
    import jax.numpy as jnp

    return {"weight": jnp.zeros(3)}

  def init(self, _: Any) -> Any:
    return self.fresh_optimizer(self.params())

  def fresh_optimizer(self, params: Any) -> Any:
    import jax.numpy as jnp

    from jaxzero.learn.train import TrainState

    zeros = self.params()
    return TrainState(step=jnp.int32(0), params=zeros, optimizer={"m": zeros}, iterate=None)

  def train_step(self, state: Any, batch: Any, _: Any) -> Any:
    import jax.numpy as jnp

    params = {"weight": state.params["weight"] * 0.9 + batch.tokens.sum() / 1000}
    state = state.replace(step=state.step + 1, params=params, optimizer={"m": params})
    return state, {"loss": jnp.float32(1.0), "grad_norm": jnp.float32(1.0)}


def play_round(engine: Any, _: Any, config: Any, seed: int, round: int, step: int, *__: Any) -> Any:
  """Worked examples as games that were played and won."""
  import numpy as np

  from jaxzero.selfplay.episode import Episode
  from jaxzero.tasks.transcript import encode_completion, encode_prompt

  episodes, A = [], config.play.tree.num_candidates
  for i in range(config.episodes_per_round):
    problem = engine.task.problem("train", seed, round * config.episodes_per_round + i)
    tokens = encode_completion(engine.tokenizer, engine.task.worked_example(problem))
    moves = len(tokens)
    candidates = np.tile(np.arange(A, dtype=np.int32), (moves, 1))
    weights = np.full((moves, A + 1), 1.0 / (A + 1), np.float32)
    episodes.append(
      Episode(
        episode_id=f"{seed}-{round}-{i}",
        problem_id=problem.id,
        prompt=problem.prompt,
        prompt_tokens=np.asarray(encode_prompt(engine.tokenizer, problem), np.int32),
        tokens=np.asarray(tokens, np.int32),
        right=True,
        truncated=False,
        harvested=np.asarray(tokens, np.int32),
        candidates=candidates,
        weights=weights,
        values=np.full(moves, 0.5, np.float32),
        visit_counts=np.ones((moves, A), np.int32),
        forward_tokens=moves,
        model_step=step,
        search=dataclasses.asdict(config.play),
        tree_parent=np.arange(-1, moves, dtype=np.int32),
        tree_token=np.asarray([0, *tokens], np.int32),
        tree_prior=np.zeros(moves + 1, np.float32),
        tree_visits=np.ones(moves + 1, np.int32),
        tree_value=np.full(moves + 1, 0.5, np.float32),
        tree_verdict=np.asarray([-1] * moves + [1], np.int8),
      )
    )
  figures = {"flops": 1e6, "episodes": len(episodes), "mean_forward_tokens": 10.0}
  return episodes, figures


def main() -> None:
  folder, acknowledged = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
  from jaxzero import cli

  reached = os.environ.get("REACHED")
  faults = Faults(folder, os.environ.get("FAULT", ""), pathlib.Path(reached) if reached else None)
  faults.install()
  cli._run = lambda _: drill(folder, acknowledged)
  cli.main([])


if __name__ == "__main__":
  main()
