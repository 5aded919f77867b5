"""Runs a launcher as a person would, with stand-ins for the clouds' command lines on PATH."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
SETTINGS = re.compile(
  "SLURM_.*|TPU_.*|ZONE|NAME|QUEUE|ACCELERATOR|TOPOLOGY|HOSTS|CHIPS|CPU|MEMORY|SLICES|SPOT|IMAGE"
  "|SERVICE_ACCOUNT|CLUSTER|NODES|GPUS|EXTRA|PYTHON|POLL_S"
)
"""What the launchers read: a test must not find the developer's own."""
TRAIN = ("train", "configs/large.py", "--run", "gs://bucket/a run")


def run(
  command: Sequence[str | pathlib.Path],
  env: Mapping[str, str] | None = None,
  timeout: float = 60,
  cwd: pathlib.Path = ROOT,
) -> subprocess.CompletedProcess[str]:
  """Runs to its end, without a terminal; `env` is added to the environment."""
  inherited = {name: v for name, v in os.environ.items() if not SETTINGS.fullmatch(name)}
  return subprocess.run(
    [str(word) for word in command],
    env={**inherited, **(env or {})},
    cwd=cwd,
    capture_output=True,
    text=True,
    timeout=timeout,
    stdin=subprocess.DEVNULL,
  )


@dataclasses.dataclass(frozen=True)
class StandIns:
  """A folder first on PATH, whose programs write down how they were called."""

  folder: pathlib.Path

  def add(self, name: str, body: str = "") -> None:
    """A program that notes its arguments, then runs `body` (bash) in the caller's folder."""
    program = self.folder / name
    program.write_text(
      "#!/usr/bin/env bash\n"
      f"echo {name} \"${{@@Q}}\" >> '{self.folder}/calls'\n"
      f"cd '{self.folder}'\n{body}\n"
    )
    program.chmod(0o755)

  def answer(self, name: str, lines: Sequence[str]) -> str:
    """Bash that takes the next of some lines each time; none when all are taken."""
    (self.folder / name).write_text("".join(f"{line}\n" for line in lines))
    return f"head -n 1 {name}; sed -i 1d {name}"

  @property
  def env(self) -> dict[str, str]:
    path = f"{self.folder}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "TMPDIR": str(self.folder), "POLL_S": "0"}

  @property
  def calls(self) -> list[list[str]]:
    """The arguments of every call so far, the program's name first."""
    path = self.folder / "calls"
    return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []
