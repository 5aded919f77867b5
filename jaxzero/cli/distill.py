"""The verb distill: a smaller model from a run's data set."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jaxzero.cli.learn import config_of
from jaxzero.cli.shared import parse, start_jax, write_json
from jaxzero.learn.lessons import DistillConfig


@dataclasses.dataclass(frozen=True)
class Distill:
  """Teach a student from a run's data set: jaxzero distill RUN --student configs/nano.py"""

  run: Annotated[str, tyro.conf.Positional]
  student: pathlib.Path
  """Config file; its model, mesh and supervised.optimizer count, the rest is the teacher's."""
  config: Annotated[DistillConfig, tyro.conf.arg(name="")] = DistillConfig()
  tokenizer: str | None = None
  """A run whose tokenizer the student takes; default: the teacher's."""
  out: str | None = None
  """The student's run folder; default: RUN-NAME, NAME the config file's. Continued."""
  json: pathlib.Path | None = None
  """Write one JSON object here."""


def distill(arguments: list[str]) -> None:
  parsed = parse(Distill, arguments, "jaxzero distill")
  parsed.config.check()
  student = config_of(parsed.student)
  start_jax()
  from jaxzero.files import as_path
  from jaxzero.loading import load
  from jaxzero.parallel import preemption
  from jaxzero.parallel.hosts import is_primary
  from jaxzero.recipes.distill import TeacherRun, distill
  from jaxzero.tokenizers import Tokenizer

  loaded = load(parsed.run, parsed.config.stage)
  teacher = TeacherRun(
    parsed.run, loaded.experiment, loaded.engine, loaded.params, loaded.stage, loaded.step
  )
  tokenizer = None
  if parsed.tokenizer is not None:
    tokenizer = Tokenizer.load(as_path(parsed.tokenizer) / "tokenizer")
  out = parsed.out or f"{parsed.run.rstrip('/')}-{parsed.student.stem}"
  preemption.listen()
  result = distill(teacher, student, parsed.config, out, tokenizer)
  if is_primary():
    test = result["test"]
    low, high = test["ci95"]
    print(
      f"{out}: {result['parameters']} parameters (the teacher has {result['teacher_parameters']}), "
      f"greedy {test['solved']}/{test['problems']} = {test['accuracy']:.1%} (95 % {low:.1%} to "
      f"{high:.1%}), from {result['completions']} verified completions"
    )
    write_json(parsed.json, {**result, "run": out})
