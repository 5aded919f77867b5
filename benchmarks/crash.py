"""Kill -9 at random moments, restart, and compare with a run that was never killed.

`python benchmarks/crash.py --kills 10` prints what differs (nothing, or it exits 1). The test suite
runs the same with fewer kills.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

SMOKE = pathlib.Path(__file__).parent.parent / "configs" / "smoke.py"
CLOCKS = {"time", "wall_s", "seconds", "peak_rss_bytes"}


def command(folder: pathlib.Path) -> list[str]:
  return [sys.executable, "-m", "jaxzero.cli", "train", str(SMOKE), "--run", str(folder)]


def run_whole(folder: pathlib.Path) -> float:
  """Runs (or finishes) the smoke config; returns the seconds it took."""
  begin = time.monotonic()
  done = subprocess.run(command(folder), capture_output=True, text=True, check=False)
  if done.returncode != 0:
    raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
  return time.monotonic() - begin


def run_killed(folder: pathlib.Path, kills: int, longest: float, seed: int) -> list[float]:
  """Kills the run so many times, each after a random time of at most `longest` seconds."""
  draw = random.Random(seed)
  moments = []
  for _ in range(kills):
    process = subprocess.Popen(
      command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    moment = draw.uniform(1.0, longest)
    try:
      process.wait(moment)
    except subprocess.TimeoutExpired:
      process.send_signal(signal.SIGKILL)
      process.wait()
      moments.append(round(moment, 2))
  run_whole(folder)
  return moments


def contents(folder: pathlib.Path) -> dict[str, Any]:
  """Everything a run leaves behind, clocks aside: parameters and optimizer as bytes."""
  from jaxzero.checkpoints import Checkpoints
  from jaxzero.recipes.run import load_experiment
  from jaxzero.recipes.stages import newest_state

  found: dict[str, Any] = {"config": load_experiment(folder)}
  for stage in ("pretrain", "self_play", "control"):
    checkpoints = Checkpoints(folder / "checkpoints" / stage)
    found[f"{stage} steps"] = checkpoints.steps()
    for path, leaf in newest_state(folder, stage).items():
      found[f"{stage} {path}"] = np.asarray(leaf).tobytes()
  found["tokenizer"] = (folder / "tokenizer" / "tokenizer.model").read_bytes()
  for path in sorted((folder / "episodes").glob("*.arrayrecord")):
    found[path.name] = path.read_bytes()
  rows = (folder / "metrics.jsonl").read_text().splitlines()
  found |= leaves("metrics", [json.loads(row) for row in rows])
  for name in ("ledger", "summary", "trees"):
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


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    run_whole(root / "warm")  # fills the compilation cache, so that moments spread over the work
    seconds = run_whole(root / "whole")
    moments = run_killed(root / "killed", arguments.kills, seconds / 2, arguments.seed)
    different = differences(contents(root / "whole"), contents(root / "killed"))
  print(
    f"uninterrupted: {seconds:.0f} s; killed after {moments} s; different: {different or 'none'}"
  )
  sys.exit(1 if different else 0)


if __name__ == "__main__":
  main()
