"""A run's process reward model: step labels from its games and samples, training, grades."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.evals.prm import Solutions, grade_scores, ranking, sample_solutions
from jaxzero.files import PathLike, read_bytes, remove
from jaxzero.learn.batch import Batch
from jaxzero.learn.losses import LossConfig
from jaxzero.learn.reward import LabelledSteps, StepScorer, cross_entropy
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import by_primary, is_primary
from jaxzero.progress import bar
from jaxzero.recipes.run import Run, load_experiment, write_json
from jaxzero.recipes.stages import load_params
from jaxzero.recipes.steps import Steps
from jaxzero.selfplay.labels import LABELLERS, StepLabels, completions_of, label
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.base import Problem

STAGES = ("prm_settings", "prm_labels", "prm_fit", "prm_grades")
LABELS, VALIDATION_LABELS = "prm/labels.npz", "prm/validation.npz"


@dataclasses.dataclass(frozen=True)
class PrmConfig:
  """How a run's process reward model is made and graded."""

  labeller: str = "samples"
  """`samples` (Math-Shepherd) or `binary_search` (OmegaPRM)."""
  problems: int = 8192
  """Training problems whose steps are labelled: those of the newest games first."""
  rollouts: int = 4
  """Completions sampled from a prefix to label it."""
  samples: int = 24
  """Completions sampled from a bare prompt; their steps are labelled as those of stored games."""
  explored: int = 32
  """The same at a high temperature, for steps that the policy seldom takes."""
  steps: int = 16000
  """Three of four are on distinct prefixes, the fourth on whole completions. What a first step is
  worth is learned late."""
  batch_size: int = 128
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=3e-3, warmup_steps=100)
  evaluate_every: int = 1000
  """Steps between validations; each also saves a checkpoint, and the one that ranks best counts."""
  validation_problems: int = 256
  grade_problems: int = 500
  """Test problems on which the scores are graded."""
  grade_samples: int = 256
  """Completions that tell the policy's own success at each graded prefix."""
  seed: int = 0

  def check(self) -> None:
    """Raises UserError for settings that cannot run."""
    if self.labeller not in LABELLERS:
      raise UserError(
        f"labeller {self.labeller!r} is unknown; choose one of {', '.join(LABELLERS)}."
      )
    for name in ("problems", "rollouts", "samples", "steps", "batch_size", "evaluate_every"):
      if getattr(self, name) < 1:
        raise UserError(f"--{name.replace('_', '-')}={getattr(self, name)} must be at least 1.")
    if self.explored < 0:
      raise UserError(f"--explored={self.explored} must not be negative.")
    if min(self.validation_problems, self.grade_problems, self.grade_samples) < 1:
      raise UserError(
        f"--validation-problems={self.validation_problems}, --grade-problems={self.grade_problems} "
        f"and --grade-samples={self.grade_samples} must be at least 1."
      )
    if not 0 <= self.seed <= 10**8:
      raise UserError(f"--seed={self.seed} must lie in 0..{10**8}.")
    self.optimizer.check()


def train_prm(folder: PathLike, config: PrmConfig, fresh: bool = False) -> dict[str, Any]:
  """Runs every stage of a finished run's PRM that is not done yet; returns RUN/prm.json.

  Its best checkpoint (by how it ranks what the validation problems' labels tell) is in
  RUN/checkpoints/prm, with the parameters of a policy-value transformer of the policy's shape, from
  which it started.

  Args:
    fresh: throw away the PRM that the run has.

  Raises:
    UserError: no run, one without self-played games, or one whose PRM has other settings.
  """
  config.check()
  with Run(folder, load_experiment(folder)) as run:
    if not (run.folder / "results" / "self_play.json").exists():
      raise UserError(
        f"{folder} has no finished self-play to learn step rewards from; let `jaxzero quickstart "
        f"--run {folder}` or `jaxzero train` play its rounds first."
      )
    if fresh:
      by_primary(lambda: discard(run.folder))
    for split, count in (
      ("validation", config.validation_problems),
      ("test", config.grade_problems),
    ):
      run.task.problems(split, 0, count)  # too many are refused before any work is done
    settings = dataclasses.asdict(config)
    _must_be_same(run, run.stage("prm_settings", lambda: settings), settings)
    policy = load_params(run, "self_play")
    labels = run.stage("prm_labels", lambda: make_labels(run, policy, config))
    fitted = run.stage("prm_fit", lambda: fit(run, policy, config))
    grades = run.stage("prm_grades", lambda: grade(run, policy, config))
    result = {
      "tokenizer": run.tokenizer.fingerprint,
      "model": dataclasses.asdict(run.experiment.model),
      "task": run.task.name,
      "settings": settings,
      "labels": labels,
      **fitted,
      "grades": grades,
      "ledger": run.ledger["prm"],
    }
    write_json(run.folder / "prm.json", result)
  return result


def make_labels(run: Run, policy: Params, config: PrmConfig) -> dict[str, Any]:
  """Labels steps of training problems, and of validation problems in the same way."""
  store = ReplayStore(run.folder / "episodes", read_only=True)
  held_out = run.task.problems("validation", config.seed, config.validation_problems)
  seed = run.experiment.seed + 1000 * config.seed
  figures: dict[str, Any] = {}
  for name, path, given, labeller in (
    ("training", LABELS, games(run, store, config.problems), config.labeller),
    ("validation", VALIDATION_LABELS, [(problem, []) for problem in held_out], "samples"),
  ):
    begin = time.monotonic()
    with run.goodput.phase("self_play"):
      labels, cost = label(
        run.engine,
        policy,
        given,
        labeller,
        config.rollouts,
        config.samples,
        config.explored if name == "training" else 0,
        seed + (name == "validation"),
        progress=lambda: run.stop_point("the labelling of steps, which will be done again"),
      )
    _charge(run, cost, begin)
    if is_primary():
      labels.save(run.folder / path)
    known = np.isfinite(labels.success)
    figures[name] = {
      **cost,
      "problems": len(given),
      "completions": len(labels),
      "labels": int(known.sum()),
      "mean_label": float(labels.success[known].mean()),
    }
  return figures


def games(run: Run, store: ReplayStore, count: int) -> list[tuple[Problem, list[tuple[int, ...]]]]:
  """`count` training problems with their stored completions: those of the newest games, then, where
  too few were played, others without any."""
  found: dict[Problem, dict[tuple[int, ...], None]] = {}
  for round in reversed(store.rounds):
    for episode in store.episodes(round):
      problem = run.task.parse(episode.prompt)
      if problem in found or len(found) < count:
        found.setdefault(problem, {}).update(dict.fromkeys(completions_of(episode)))
    if len(found) >= count:
      break
  index = 0
  while len(found) < count and index < 20 * count:
    found.setdefault(run.task.problem("train", run.experiment.seed + 5, index), {})
    index += 1
  return [(problem, list(texts)) for problem, texts in found.items()]


def fit(run: Run, policy: Params, config: PrmConfig) -> dict[str, Any]:
  """Trains from the policy's parameters; keeps the checkpoint of the best validation."""
  experiment, vocab_size = run.experiment, run.tokenizer.vocab_size
  loss = LossConfig(value_weight=1.0, policy_weight=0.0)
  trainer = Trainer(experiment.model, vocab_size, config.optimizer, loss, run.mesh, config.steps)
  labels, held_out = (StepLabels.load(run.folder / path) for path in (LABELS, VALIDATION_LABELS))
  seed = experiment.seed + 1000 * config.seed
  examples = LabelledSteps(labels, experiment.context, seed, run.tokenizer)
  scorer = StepScorer(experiment.model, vocab_size, run.mesh)
  state = trainer.fresh_optimizer(jax.tree.map(lambda x: x.copy(), policy))
  steps = Steps(run, "prm", "prm", trainer, state, config.batch_size, keep_best=True)
  history: list[dict[str, float]] = steps.meta.get("history", [])

  def batch(step: int, rows: np.ndarray) -> Batch:
    return examples.batch(step, config.batch_size, rows)

  with bar("reward model", total=config.steps, unit="steps", start=steps.step) as progress:
    while steps.step < config.steps:
      until = (steps.step // config.evaluate_every + 1) * config.evaluate_every
      metrics = steps.advance(min(until, config.steps), batch, progress=progress, history=history)
      scores = scorer(steps.state.params, held_out)
      row = {
        "step": steps.step,
        "loss": metrics["value_loss"],
        "validation_loss": cross_entropy(scores, held_out),
        "validation_ranking": ranking(scores, held_out, run.tokenizer),
      }
      history = [*history, row]
      progress.describe(f"reward model, validation {row['validation_ranking']:.3f}")
      steps.save(row["validation_ranking"], history=history)
      run.stop_point(f"step {steps.step} of prm")
  best = by_primary(steps.checkpoints.best)
  return {**next(row for row in history if row["step"] == best), "history": history}


def grade(run: Run, policy: Params, config: PrmConfig) -> dict[str, Any]:
  """Grades the best PRM, and the value head beside it, on test problems."""
  checkpoints = Checkpoints(run.folder / "checkpoints" / "prm", keep_best=True)
  best = by_primary(checkpoints.best)
  prm = checkpoints.restore(best, policy)["params"]
  problems = run.task.problems("test", 0, config.grade_problems)
  held_out = run.task.problems("validation", config.seed, config.validation_problems)
  solutions: list[Solutions] = []
  for number, (some, samples) in enumerate(((problems, config.grade_samples), (held_out, 0))):
    begin = time.monotonic()
    with run.goodput.phase("evaluate"):
      solutions.append(
        sample_solutions(
          run.engine,
          policy,
          some,
          samples,
          run.experiment.seed + 1000 * config.seed + 10 + 2 * number,
          lambda: run.stop_point("the grading of the PRM, which will be done again"),
        )
      )
    _charge(run, solutions[-1].cost, begin)
  scorer = StepScorer(run.experiment.model, run.tokenizer.vocab_size, run.mesh)
  judges = {"prm": prm, "value": policy}
  return {
    "problems": len(problems),
    "samples": config.grade_samples,
    **grade_scores(scorer, judges, solutions[0], solutions[1], config.seed),
  }


def _charge(run: Run, cost: Mapping[str, float], begin: float) -> None:
  run.charge("prm", cost["flops"], time.monotonic() - begin, cost["forward_tokens"])


def discard(folder: epath.Path) -> None:
  """Takes a PRM away, the last made first: a kill leaves an earlier stage, never a torn one."""
  plan = folder / "plan.json"
  if plan.exists():  # what `auto` does with another PRM is to be measured anew
    write_json(plan, {k: v for k, v in json.loads(read_bytes(plan)).items() if k != "prm"})
  for name in ("prm.json", *(f"results/{stage}.json" for stage in reversed(STAGES))):
    remove(folder / name)
  remove(folder / "checkpoints" / "prm")
  remove(folder / "prm")


def _must_be_same(run: Run, there: dict[str, Any], here: dict[str, Any]) -> None:
  different = [
    f"{name}: {there.get(name)} there, {here[name]} here"
    for name in here
    if there.get(name) != here[name]
  ]
  if different:
    raise UserError(
      f"{run.folder} has a PRM of other settings ({', '.join(different[:4])}); give the same ones "
      "to continue it, or --fresh to make another in its place."
    )
