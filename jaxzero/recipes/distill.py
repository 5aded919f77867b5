"""Distillation: a student of any size learns from a run's data set, as a run of its own."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, read_bytes
from jaxzero.learn.batch import Batch
from jaxzero.learn.lessons import DistillConfig, Lessons, right_ends, translate, verified
from jaxzero.learn.teacher import Verified, target
from jaxzero.learn.train import Trainer
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import by_primary
from jaxzero.progress import bar
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.quickstart import test_accuracy
from jaxzero.recipes.run import Run, write_json
from jaxzero.recipes.stages import load_params, validate
from jaxzero.recipes.steps import Steps, train_flops
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine
from jaxzero.search.pool import think
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import encode_prompt
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
    ones learned from), "too_long" (of the data set's, left out: they do not fit the student's
    tokens)}.

  Raises:
    UserError: no episodes, another tokenizer and soft targets, a folder of another student.
  """
  config.check()
  source = teacher.engine.tokenizer
  tokenizer = tokenizer or source
  if config.soft and tokenizer.fingerprint != source.fingerprint:
    raise UserError(
      f"targets={config.targets} are over the teacher's {source.vocab_size} tokens, and the "
      f"student has another tokenizer of {tokenizer.vocab_size}; use --targets paths."
    )
  experiment = dataclasses.replace(
    teacher.experiment, model=student.model, mesh=student.mesh, supervised=student.supervised
  )
  lesson = _lesson(teacher, config, tokenizer, experiment.context)
  with Run(folder, experiment, tokenizer=tokenizer) as run:
    _check_lesson(run, teacher, config)
    return run.stage(STAGE, lambda: _teach(run, teacher, config, lesson))


class Lesson(NamedTuple):
  """What a run's data set holds for a student, in the student's tokens."""

  problems: list[Problem]
  texts: list[tuple[list[int], list[int]]]  # (prompt, completion) of all that is verified
  games: list[Episode]
  too_long: int


def _lesson(
  teacher: TeacherRun, config: DistillConfig, tokenizer: Tokenizer, length: int
) -> Lesson:
  """Reads the data set; UserError where there is nothing in it that fits `length` tokens."""
  if config.supervised_share == 1:
    return Lesson([], [], [], 0)
  episodes = teacher.episodes(config.rounds)
  everything = verified(episodes, teacher.engine.task)
  source = teacher.engine.tokenizer
  same = tokenizer.fingerprint == source.fingerprint

  def own(tokens: np.ndarray) -> np.ndarray:
    return tokens if same else np.array(translate(tokens, source, tokenizer), np.int32)

  texts = [(own(one.prompt).tolist(), own(one.tokens).tolist()) for one in everything]
  texts = [text for text in texts if len(text[0]) + len(text[1]) <= length]
  games = []
  for episode in episodes:
    game = dataclasses.replace(
      episode,
      prompt_tokens=own(episode.prompt_tokens),
      tokens=own(episode.tokens),
      harvested=own(episode.harvested),
    )
    if len(game.prompt_tokens) + max(len(game.tokens), len(game.harvested)) <= length:
      games.append(game)
  if not texts:
    raise UserError(
      f"none of the {len(episodes)} episodes of {teacher.folder} holds a right completion that "
      f"fits {length} tokens; play more rounds, or take --supervised-share 1."
    )
  problems = {episode.problem_id: episode.prompt for episode in episodes}
  parsed = [teacher.engine.task.parse(prompt) for prompt in problems.values()]
  return Lesson(parsed, texts, games, len(everything) - len(texts))


def _check_lesson(run: Run, teacher: TeacherRun, config: DistillConfig) -> None:
  """Writes down what this student learns from.

  Raises:
    UserError: the folder holds a student that has begun with something else, or another run.
  """
  about = {
    "config": dataclasses.asdict(config),
    "teacher": {"run": str(teacher.folder), "stage": teacher.stage, "step": teacher.step},
  }
  path = run.folder / "distill.json"

  def saved() -> dict[str, Any] | None:
    return json.loads(read_bytes(path)) if path.exists() else None

  before = by_primary(saved)
  if not by_primary((run.folder / "checkpoints").exists):
    write_json(path, about)
  elif before is None:
    raise UserError(
      f"{run.folder} holds a run of its own, which a student would overwrite; give another --out "
      "folder."
    )
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


def _teach(run: Run, teacher: TeacherRun, config: DistillConfig, lesson: Lesson) -> dict[str, Any]:
  texts, targets = lesson.texts, None
  if config.soft:
    found = _think_again(run, teacher, config, lesson.problems)
    texts = [(one.prompt.tolist(), one.tokens.tolist()) for one in found]
    targets = [target(one) for one in found]
  lessons = Lessons(
    config, run.worked_examples, lesson.games, texts, targets, run.experiment.context
  )
  params, step = _train(run, config, lessons)
  return {
    "test": test_accuracy(run, params, step),
    "parameters": run.experiment.model.parameters(run.tokenizer.vocab_size),
    "teacher_parameters": teacher.experiment.model.parameters(teacher.engine.tokenizer.vocab_size),
    "completions": len(texts),
    "too_long": lesson.too_long,
  }


def _think_again(
  run: Run, teacher: TeacherRun, config: DistillConfig, problems: list[Problem]
) -> list[Verified]:
  """All right ends of new trees of the final teacher, which go on behind the first one: reanalysis
  (Schrittwieser et al. 2020) of the data set's problems, without replacement (Kool et al. 2019).

  The ledger's `teacher` pays once, whoever goes on from there.
  """
  engine, count = teacher.engine, len(problems)
  begin = time.monotonic()
  with (
    run.goodput.phase("learn"),
    bar("the teacher thinks again", total=count, unit="problems") as shown,
  ):
    thinking = think(
      engine,
      teacher.params,
      problems,
      jax.random.split(jax.random.key(config.seed), count),
      config.nodes,
      TreeConfig(order="without_replacement", num_simulations=config.nodes),
      verify_inside=True,
      stop_when_found=False,
      noise=1.0,
      batch_size=teacher.experiment.self_play.batch_size,
      keep_trees=count,
      compact=True,
      progress=shown.advance,
    )
  tokens = float(thinking.insight.forward_tokens.sum())
  run.charge("teacher", engine.flops(thinking.positions), time.monotonic() - begin, tokens)
  found = [
    one
    for problem, tree in zip(problems, thinking.trees, strict=True)
    for one in right_ends(
      problem, np.array(encode_prompt(engine.tokenizer, problem), np.int32), tree
    )
  ]
  if not found:
    raise UserError(
      f"the teacher finds no right end of {count} problems in trees of {config.nodes} nodes; give "
      "it more --nodes, or take --targets paths."
    )
  return found


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
