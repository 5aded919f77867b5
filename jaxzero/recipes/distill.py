"""Distillation: a student of any size learns from a run's data set, as a run of its own."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_bytes
from jaxzero.learn.batch import Batch
from jaxzero.learn.lessons import DistillConfig, Lessons, translate, verified
from jaxzero.learn.teacher import Target, Teacher, Verified
from jaxzero.learn.train import Trainer
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import by_primary
from jaxzero.progress import bar
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.quickstart import test_accuracy
from jaxzero.recipes.run import Run, write_json
from jaxzero.recipes.stages import load_params, validate
from jaxzero.recipes.steps import Steps, train_flops
from jaxzero.search.engine import Engine
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tokenizers import Tokenizer

STAGE = "distill"


@dataclasses.dataclass(frozen=True)
class TeacherRun:
  """A finished run that a student learns from."""

  folder: PathLike
  experiment: Experiment
  engine: Engine
  params: Params
  stage: str
  step: int

  def episodes(self, rounds: int) -> list[Episode]:
    """Those of the newest `rounds` rounds (0: of all); UserError where there are none."""
    folder = as_path(self.folder) / "episodes"
    store = ReplayStore(folder, read_only=True) if folder.exists() else None
    if store is None or not store.rounds:
      raise UserError(
        f"{self.folder} has no episodes to learn from; let its self-play finish a round, or take "
        "another run."
      )
    return [episode for round in store.rounds[-rounds:] for episode in store.episodes(round)]


def distill(
  teacher: TeacherRun,
  student: Experiment,
  config: DistillConfig,
  folder: PathLike,
  tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
  """Trains a student, and measures it; a run that was stopped goes on.

  Args:
    student: its `model`, `mesh` and `supervised.optimizer` count; task, lengths and evaluation are
      the teacher's.
    tokenizer: the student's; default: the teacher's. Another one takes targets=paths.

  Returns:
    {"test" (an eval object, greedy), "parameters", "teacher_parameters", "completions" (verified
    ones learned from), "too_long" (left out: they do not fit the student's tokens)}.

  Raises:
    UserError: no episodes, another tokenizer and soft targets, a folder of another student.
  """
  config.check()
  source = teacher.engine.tokenizer
  tokenizer = tokenizer or source
  same = tokenizer.fingerprint == source.fingerprint
  if config.soft and not same:
    raise UserError(
      f"targets={config.targets} are over the teacher's {source.vocab_size} tokens, and the "
      f"student has another tokenizer of {tokenizer.vocab_size}; use --targets paths."
    )
  experiment = dataclasses.replace(
    teacher.experiment, model=student.model, mesh=student.mesh, supervised=student.supervised
  )
  episodes = [] if config.supervised_share == 1 else teacher.episodes(config.rounds)
  with Run(folder, experiment, tokenizer=tokenizer) as run:
    _check_lesson(run, teacher, config)
    return run.stage(STAGE, lambda: _teach(run, teacher, config, episodes, same))


def _check_lesson(run: Run, teacher: TeacherRun, config: DistillConfig) -> None:
  """Writes down what this student learns from; UserError where it began with something else."""
  about = {
    "config": dataclasses.asdict(config),
    "teacher": {"run": str(teacher.folder), "stage": teacher.stage, "step": teacher.step},
  }
  path = run.folder / "distill.json"

  def saved() -> dict[str, Any] | None:
    return json.loads(read_bytes(path)) if path.exists() else None

  before = by_primary(saved)
  if before is None:
    write_json(path, about)
  elif before != about:
    different = sorted(
      f"{name}: {before[part].get(name)} there, {value} here"
      for part in about
      for name, value in about[part].items()
      if before[part].get(name) != value
    )
    raise UserError(
      f"{run.folder} holds a student of other lessons (differs in {', '.join(different[:3])}); "
      "give the same settings to continue it, or another --out folder."
    )


def _teach(
  run: Run, teacher: TeacherRun, config: DistillConfig, episodes: list[Episode], same: bool
) -> dict[str, Any]:
  completions = verified(episodes, run.task)
  targets = _targets(run, teacher, completions) if config.soft else None
  source = teacher.engine.tokenizer

  def own(tokens: np.ndarray) -> list[int]:
    return tokens.tolist() if same else translate(tokens, source, run.tokenizer)

  texts = [(own(one.prompt), own(one.tokens)) for one in completions]
  length = run.experiment.context
  fitting = [text for text in texts if len(text[0]) + len(text[1]) <= length]
  games = [
    dataclasses.replace(
      episode,
      prompt_tokens=np.array(own(episode.prompt_tokens), np.int32),
      tokens=np.array(own(episode.tokens), np.int32),
      harvested=np.array(own(episode.harvested), np.int32),
    )
    for episode in episodes
  ]
  games = [game for game in games if len(game.prompt_tokens) + len(game.tokens) <= length]
  if config.supervised_share < 1 and not fitting:
    raise UserError(
      f"none of the {len(episodes)} episodes of {teacher.folder} holds a right completion that "
      f"fits {length} tokens; play more rounds, or take --supervised-share 1."
    )
  lessons = Lessons(config, run.worked_examples, games, fitting, targets, length)
  params, step = _train(run, config, lessons)
  return {
    "test": test_accuracy(run, params, step),
    "parameters": run.experiment.model.parameters(run.tokenizer.vocab_size),
    "teacher_parameters": teacher.experiment.model.parameters(source.vocab_size),
    "completions": len(fitting),
    "too_long": len(texts) - len(fitting),
  }


def _targets(run: Run, teacher: TeacherRun, completions: list[Verified]) -> list[Target]:
  """The teacher's targets, charged to the ledger's `teacher` once, whoever asks for them again."""
  asked = Teacher(teacher.engine, teacher.params)
  begin = time.monotonic()
  with (
    run.goodput.phase("learn"),
    bar("asking the teacher", total=len(completions), unit="completions") as shown,
  ):
    targets = asked.targets(completions, shown.advance)
  positions = float(len(completions) * asked.positions)
  run.charge("teacher", asked.flops(len(completions)), time.monotonic() - begin, positions)
  return targets


def _train(run: Run, config: DistillConfig, lessons: Lessons) -> tuple[Params, int]:
  """The student of the best validation, and its step."""
  experiment = run.experiment
  trainer = Trainer(
    experiment.model,
    run.tokenizer.vocab_size,
    experiment.supervised.optimizer,
    dataclasses.replace(experiment.improve.loss, kl_weight=0.0),
    run.mesh,
    config.steps,
  )
  state = trainer.init(jax.random.key(config.seed))
  steps = Steps(run, STAGE, STAGE, trainer, state, config.batch_size, keep_best=True)
  step_flops = train_flops(run, config.batch_size)

  def batch(step: int, rows: np.ndarray) -> Batch:
    return lessons.batch(step, rows)

  with bar("distillation", total=config.steps, unit="steps", start=steps.step) as progress:
    while steps.step < config.steps:
      until = min((steps.step // config.evaluate_every + 1) * config.evaluate_every, config.steps)
      metrics = steps.advance(until, batch, progress=progress)
      accuracy = validate(run, steps.state.params, steps.step)
      run.log(
        kind=STAGE,
        step=steps.step,
        validation_accuracy=accuracy,
        flops=steps.step * step_flops,
        **metrics,
      )
      progress.describe(f"distillation, validation {accuracy:.1%}")
      steps.save(accuracy)
      run.stop_point(f"step {steps.step} of {STAGE}")
  return load_params(run, STAGE, best=True), steps.checkpoints.best() or 0
