"""Whether a run is still as it was written: every file it left behind is read, none is changed."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any

from etils import epath

from jaxzero import tasks
from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_bytes, tree
from jaxzero.recipes import prm
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import from_dict
from jaxzero.search.record import NO_END, RIGHT, path_to
from jaxzero.selfplay.episode import Episode, validate
from jaxzero.selfplay.labels import StepLabels
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.base import Task
from jaxzero.tasks.transcript import grade
from jaxzero.tokenizers import Tokenizer

_ITEMS = ("params", "optimizer", "data", "meta")
_TOKENIZER = "tokenizer/tokenizer.model"
_RESULT = {"value", "books"}
_LABELS = (prm.LABELS, prm.VALIDATION_LABELS)


@dataclasses.dataclass(frozen=True)
class Finding:
  """One thing that is not as it should be.

  Attributes:
    path: the file or folder, relative to the run.
    what: a phrase that goes on from the path.
    harmful: False for what a killed write left, or what was set aside before.
  """

  path: str
  what: str
  harmful: bool = True


@dataclasses.dataclass
class Verification:
  """What was found, and how much was looked at."""

  findings: list[Finding] = dataclasses.field(default_factory=list)
  files: int = 0
  bytes: int = 0
  checkpoints: int = 0
  episodes: int = 0

  @property
  def damage(self) -> list[Finding]:
    return [finding for finding in self.findings if finding.harmful]


def verify(folder: PathLike) -> Verification:
  """Checks a run's folder, local or gs://, by checksums where it has them, else by reading.

  Checkpoints and replay shards are hashed; every episode is decoded, validated and judged again by
  the task's verifier. JSON files and step labels have no checksum: they must be whole.

  Raises:
    UserError: there is no run.
  """
  run = as_path(folder)
  sizes = tree(run)
  if not sizes:
    raise UserError(f"there is no run at {run}; check the path.")
  found = Verification(files=len(sizes), bytes=sum(sizes.values()))
  experiment = _attempt(found, "config.json", lambda: _config(run))
  tokenizer = None
  if _TOKENIZER in sizes:
    tokenizer = _attempt(found, _TOKENIZER, lambda: Tokenizer.load(run / "tokenizer"))
  else:  # written behind the config, and before all that needs it
    needed = any(name.split("/")[0] in ("checkpoints", "episodes") for name in sizes)
    found.findings.append(Finding(_TOKENIZER, "is missing", harmful=needed))
  for name in sizes:
    _check_unhashed(found, run, name)
    if name.split("/")[-1].startswith(".") and name.endswith(".tmp"):
      found.findings.append(Finding(name, "is left from a killed write", harmful=False))
    if name.endswith(".reason.txt"):
      reason = read_bytes(run / name).decode(errors="replace").strip()
      found.findings.append(Finding(name, f"set aside before: {reason}", harmful=False))
  for stage in sorted({name.split("/")[1] for name in sizes if name.startswith("checkpoints/")}):
    _check_checkpoints(found, run, f"checkpoints/{stage}")
  played = any(name.startswith("checkpoints/self_play/") for name in sizes)
  if played and "episodes/manifest.json" not in sizes:
    found.findings.append(Finding("episodes/manifest.json", "is missing"))
  elif any(name.startswith("episodes/") for name in sizes):
    _check_episodes(found, run, experiment, tokenizer)
  return found


def _attempt(found: Verification, name: str, read: Callable[[], Any]) -> Any:
  """What `read` returns; None, and a finding, where it cannot."""
  try:
    return read()
  except FileNotFoundError:
    found.findings.append(Finding(name, "is missing"))
  except (UserError, OSError, ValueError, TypeError, KeyError, EOFError, zlib.error) as error:
    found.findings.append(Finding(name, f"cannot be read ({error})"))
  return None


def _config(run: epath.Path) -> Experiment:
  experiment = from_dict(Experiment, json.loads(read_bytes(run / "config.json")))
  experiment.check()
  return experiment


def _check_unhashed(found: Verification, run: epath.Path, name: str) -> None:
  """Metrics, ledger, summary, results, a study's cells: whole JSON; step labels: whole arrays."""
  path = pathlib.PurePosixPath(name)
  if name in _LABELS:
    _attempt(found, name, lambda: StepLabels.load(run / name))
  if str(path.parent) not in (".", "results", "scale") or name == "config.json":
    return
  if path.suffix == ".json":
    value = _attempt(found, name, lambda: json.loads(read_bytes(run / name)))
    if path.parent.name == "results" and isinstance(value, dict) and set(value) != _RESULT:
      found.findings.append(Finding(name, f"has the keys {sorted(value)}, not {sorted(_RESULT)}"))
  elif path.suffix == ".jsonl":
    _attempt(found, name, lambda: _rows(read_bytes(run / name)))


def _rows(data: bytes) -> None:
  if data and not data.endswith(b"\n"):
    raise ValueError("its last line is cut")
  for number, line in enumerate(data.splitlines(), start=1):
    try:
      good = isinstance(json.loads(line), dict)
    except ValueError:
      good = False
    if not good:
      raise ValueError(f"line {number} is not a JSON object")


def _check_checkpoints(found: Verification, run: epath.Path, stage: str) -> None:
  checkpoints = Checkpoints(run / stage)
  for step in checkpoints.steps():
    found.checkpoints += 1
    reason = checkpoints.damage(step)
    missing = [] if reason else sorted(set(_ITEMS) - set(checkpoints.items(step)))
    if reason or missing:
      what = reason or f"holds no {' and no '.join(missing)}"
      found.findings.append(Finding(f"{stage}/{step}", what))
  for name in checkpoints.leftovers():
    if not name.endswith(".tmp"):  # those are named already
      found.findings.append(Finding(f"{stage}/{name}", "is left from a killed save", False))


def _check_episodes(
  found: Verification,
  run: epath.Path,
  experiment: Experiment | None,
  tokenizer: Tokenizer | None,
) -> None:
  store = _attempt(
    found, "episodes/manifest.json", lambda: ReplayStore(run / "episodes", read_only=True)
  )
  if store is None:
    return
  task = None if experiment is None else tasks.make(experiment.task)
  for shard in store.shards:
    name = f"episodes/{shard.name}"
    reason = store.damage(shard)
    if reason:
      found.findings.append(Finding(name, reason))
      continue
    count = 0
    try:
      for episode in store.read(shard):
        count += 1
        if task is not None and tokenizer is not None:
          _judge(task, tokenizer, episode)
    except UserError as error:
      found.findings.append(Finding(name, f"holds a bad episode ({error})"))
    else:
      if count != shard.episodes:
        found.findings.append(Finding(name, f"holds {count} episodes, not {shard.episodes}"))
    found.episodes += count
  for name in store.leftovers():
    if not name.endswith(".tmp"):
      found.findings.append(Finding(f"episodes/{name}", "was never committed", False))


def _judge(task: Task, tokenizer: Tokenizer, episode: Episode) -> None:
  """UserError where the episode breaks a rule or the verifier disagrees with it."""
  validate(episode, tokenizer.vocab_size)
  problem = task.parse(episode.prompt)
  if problem.id != episode.problem_id:
    raise UserError(f"{episode.episode_id}: {episode.prompt!r} is not {episode.problem_id!r}")
  verdict = grade(task, tokenizer, problem, episode.tokens.tolist())
  if verdict.right != episode.right:
    raise UserError(f"{episode.episode_id} says right={episode.right}, the verifier: {verdict}")
  if (
    len(episode.harvested) and not grade(task, tokenizer, problem, episode.harvested.tolist()).right
  ):
    raise UserError(f"{episode.episode_id}: its harvested solution is not right")
  tree = episode.tree
  for node in (tree.verdict != NO_END).nonzero()[0].tolist():
    verdict = grade(task, tokenizer, problem, tree.token[path_to(tree, node)].tolist())
    if verdict.right != (tree.verdict[node] == RIGHT):
      raise UserError(
        f"{episode.episode_id}: node {node} of its tree has the verdict {tree.verdict[node]}, the "
        f"verifier: {verdict}"
      )
