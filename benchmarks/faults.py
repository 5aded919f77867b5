"""Runs that are killed, or whose disk fails, at every named point and at random moments; each then
goes on, and is compared with one that was never disturbed.

  python -m benchmarks.faults --kills 200 --stops 20 --errors 60 --random 20

prints a table for RESULTS.md, and exits 1 if anything was lost, doubled, torn or different. The
tests run the same, shorter.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks.fault_points import SMOKE
from jaxzero.progress import bar

CLOCKS = {"time", "wall_s", "seconds", "peak_rss_bytes"}
ROOT = pathlib.Path(__file__).parents[1]


@dataclasses.dataclass
class Found:
  """What a series of faults came to."""

  name: str
  points: int = 0
  hit: int = 0
  wrong: list[str] = dataclasses.field(default_factory=list)

  def row(self) -> str:
    return f"| {self.name} | {self.points} | {self.hit} | {len(self.wrong)} |"


class Drill:
  """Disturbed runs of `fault_points.drill`, one folder after the other."""

  def __init__(self, root: pathlib.Path):
    self.root, self.number = root, 0
    reached = root / "reached"
    self.fresh()
    code, said = self.session("", REACHED=str(reached))
    assert code == 0, said
    self.whole, self.points = (
      contents(self.folder),
      collections.Counter(reached.read_text().splitlines()),
    )

  def fresh(self) -> None:
    self.number += 1
    self.folder = self.root / f"run{self.number}"
    self.acknowledged = self.root / f"acknowledged{self.number}"

  def session(self, fault: str, **env: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "benchmarks.fault_points"]
    done = subprocess.run(
      [*command, str(self.folder), str(self.acknowledged)],
      cwd=ROOT,
      env={
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "FAULT": fault,
        "FIRED": f"{self.folder}.fired",
        **env,
      },
      capture_output=True,
      text=True,
      check=False,
    )
    return done.returncode, done.stderr

  def plan(self, count: int, seed: int) -> list[str]:
    """`count` of the points, all of them once before any comes again, at another time then."""
    draw, plan = random.Random(seed), []
    names = sorted(self.points)
    while len(plan) < count:
      draw.shuffle(names)
      plan += [f"{name}:{draw.randint(1, self.points[name])}" for name in names]
    return plan[:count]

  def kills(self, count: int, seed: int = 0) -> Found:
    """Kills session after session, each at another point; what is left is checked every time."""
    found = Found("SIGKILL at a named point")
    self.fresh()
    with bar("kills", total=count, unit="kills") as progress:
      for fault in self.plan(count, seed):
        code = self.session(f"{fault}:kill")[0]
        if code == 0:  # what a point belongs to was done already
          found.wrong += self._end(fault)
          self.fresh()
          code = self.session(f"{fault}:kill")[0]
        if code != -signal.SIGKILL:
          found.wrong.append(f"{fault}: exit code {code} instead of a kill")
        found.hit += code == -signal.SIGKILL
        found.wrong += [f"{fault}: {what}" for what in harm(self.folder, self.acknowledged)]
        progress.advance()
    found.wrong += self._end("the last")
    found.points = len({fault.rsplit(":", 1)[0] for fault in self.plan(count, seed)})
    return found

  def stops(self, count: int, seed: int = 0) -> Found:
    """SIGTERM at a point: the run saves at its next step, exits with code 3, and goes on."""
    found = Found("SIGTERM at a named point")
    with bar("stops", total=count, unit="stops") as progress:
      for fault in self.plan(count, seed):
        self.fresh()
        code, said = self.session(f"{fault}:stop")
        if code not in (0, 3) or "Traceback" in said:  # 0: after the last point to stop at
          found.wrong.append(f"{fault}: exit code {code}: {said[-1500:]}")
        found.hit += code == 3
        found.wrong += [f"{fault}: {what}" for what in harm(self.folder, self.acknowledged)]
        found.wrong += self._end(fault)
        progress.advance()
    found.points = len({fault.rsplit(":", 1)[0] for fault in self.plan(count, seed)})
    return found

  def errors(self, count: int, action: str, seed: int = 0) -> Found:
    """A disk that is full or broken at a point: one sentence and exit code 2, or no harm at all."""
    found = Found({"full": "ENOSPC at a named point", "broken": "EIO at a named point"}[action])
    with bar(f"errors, {action}", total=count, unit="errors") as progress:
      for fault in self.plan(count, seed):
        self.fresh()
        code, said = self.session(f"{fault}:{action}")
        if code not in (0, 2) or "Traceback" in said:
          found.wrong.append(f"{fault}: exit code {code}: {said[-1500:]}")
        found.hit += pathlib.Path(f"{self.folder}.fired").exists()
        found.wrong += [f"{fault}: {what}" for what in harm(self.folder, self.acknowledged)]
        found.wrong += self._end(fault)
        progress.advance()
    found.points = len({fault.rsplit(":", 1)[0] for fault in self.plan(count, seed)})
    return found

  def _end(self, fault: str) -> list[str]:
    code, said = self.session("")
    if code != 0:
      return [f"{fault}: going on ended with exit code {code}: {said[-1500:]}"]
    different = differences(self.whole, contents(self.folder))
    return [f"{fault}: different in the end: {different[:3]}"] if different else []


def harm(folder: pathlib.Path, acknowledged: pathlib.Path) -> list[str]:
  """What a run in this state has lost, doubled or torn."""
  from jaxzero.recipes.verify import verify
  from jaxzero.selfplay.replay import ReplayStore

  if not (folder / "config.json").exists():
    return ["acknowledged, but no run is there"] if acknowledged.exists() else []
  wrong = [str(damage) for damage in verify(folder).damage]
  promised: dict[str, Any] = {}
  lines = acknowledged.read_text().splitlines() if acknowledged.exists() else []
  for line in lines:
    promised |= json.loads(line)
  if not (folder / "episodes").exists():
    return wrong + [f"{name} is lost" for name in promised if name.startswith("episodes")]
  store = ReplayStore(folder / "episodes", read_only=True)
  stored = {shard.name: shard.sha256 for shard in store.shards}
  for name, value in promised.items():
    if name.endswith(".arrayrecord") and stored.get(name) != value:
      wrong.append(f"episodes of {name} are lost")
    if not name.endswith(".arrayrecord"):
      steps = [int(p.stem.split("-")[1]) for p in (folder / "checkpoints" / name).glob("digest-*")]
      if max(steps, default=-1) < value:
        wrong.append(f"checkpoint {value} of {name} is lost, there are {steps}")
  ids = [episode.episode_id for round in store.rounds for episode in store.episodes(round)]
  return wrong + [f"{one} is doubled" for one, n in collections.Counter(ids).items() if n > 1]


def command(folder: pathlib.Path) -> list[str]:
  return [sys.executable, "-m", "jaxzero.cli", "train", str(SMOKE), "--run", str(folder)]


def run_whole(folder: pathlib.Path) -> float:
  """Runs (or finishes) the smoke config; returns the seconds it took."""
  begin = time.monotonic()
  done = subprocess.run(command(folder), capture_output=True, text=True, check=False)
  if done.returncode != 0:
    raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
  return time.monotonic() - begin


def run_disturbed(
  folder: pathlib.Path, times: int, longest: float, seed: int, number: int = signal.SIGKILL
) -> list[float]:
  """Signals a real run so many times, each after a random time of at most `longest` seconds."""
  draw = random.Random(seed)
  moments = []
  for _ in range(times):
    process = subprocess.Popen(
      command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    moment = draw.uniform(1.0, longest)
    try:
      process.wait(moment)
    except subprocess.TimeoutExpired:
      process.send_signal(number)
      code = process.wait()
      expected = (-number, 3) if number != signal.SIGKILL else (-number,)
      if code not in (*expected, 0):
        raise RuntimeError(f"exit code {code} after signal {number}") from None
      moments.append(round(moment, 2))
  run_whole(folder)
  return moments


def contents(folder: pathlib.Path) -> dict[str, Any]:
  """Everything a run leaves behind, clocks aside: parameters and optimizer as bytes."""
  from jaxzero.checkpoints import Checkpoints
  from jaxzero.recipes.run import load_experiment
  from jaxzero.recipes.stages import newest_state

  found: dict[str, Any] = {"config": load_experiment(folder)}
  for stage in sorted(path.name for path in (folder / "checkpoints").iterdir()):
    checkpoints = Checkpoints(folder / "checkpoints" / stage)
    found[f"{stage} step"] = checkpoints.latest
    for path, leaf in newest_state(folder, stage).items():
      found[f"{stage} {path}"] = np.asarray(leaf).tobytes()
  found["tokenizer"] = (folder / "tokenizer" / "tokenizer.model").read_bytes()
  for path in sorted((folder / "episodes").glob("*.arrayrecord")):
    found[path.name] = path.read_bytes()
  rows = (folder / "metrics.jsonl").read_text().splitlines()
  found |= leaves("metrics", [json.loads(row) for row in rows])
  for name in ("ledger", "summary", "trees"):
    if (folder / f"{name}.json").exists():
      found |= leaves(name, json.loads((folder / f"{name}.json").read_text()))
  return found


def leaves(name: str, value: Any) -> dict[str, Any]:
  """Every number and text of a JSON value by its path, clocks left out."""
  if isinstance(value, list):
    value = dict(enumerate(value))
  if not isinstance(value, dict):
    return {name: value}
  found = {name: len(value)}
  for key, child in value.items():
    if key not in CLOCKS:
      found |= leaves(f"{name}.{key}", child)
  return found


def differences(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
  return sorted(key for key in set(a) | set(b) if a.get(key) != b.get(key))


def at_random(root: pathlib.Path, times: int, seed: int) -> list[Found]:
  """Kills, then polite stops, at random moments of the smoke run."""
  run_whole(root / "warm")  # fills the compilation cache, so that moments spread over the work
  seconds, whole = run_whole(root / "whole"), contents(root / "whole")
  found = []
  for number, name in ((signal.SIGKILL, "SIGKILL"), (signal.SIGTERM, "SIGTERM")):
    folder = root / name
    moments = run_disturbed(folder, times, seconds / 2, seed, number)
    different = differences(whole, contents(folder))
    found.append(Found(f"{name} at a random moment of the smoke run", 0, len(moments), different))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=200)
  parser.add_argument("--stops", type=int, default=20)
  parser.add_argument("--errors", type=int, default=60, help="of each kind")
  parser.add_argument("--random", type=int, default=20, help="of each signal")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    drill = Drill(pathlib.Path(folder))
    found = [drill.kills(options.kills, options.seed), drill.stops(options.stops, options.seed)]
    found += [drill.errors(options.errors, action, options.seed) for action in ("full", "broken")]
    if options.random:
      found += at_random(pathlib.Path(folder), options.random, options.seed)
  found = [each for each in found if each.hit or each.wrong]
  print("| fault | points | faults | lost, doubled, torn or different |\n|---|---|---|---|")
  print("\n".join(each.row() for each in found))
  wrong = [what for each in found for what in each.wrong]
  print("\n".join(wrong), file=sys.stderr)
  sys.exit(1 if wrong else 0)


if __name__ == "__main__":
  main()
