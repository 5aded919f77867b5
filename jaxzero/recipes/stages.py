"""The supervised stages of a run, training and its longer-trained control; what all stages share.

Each stage goes on from its newest good checkpoint, and its data order depends on (seed, step)
alone, so a killed run ends in the same bits as one that was never killed.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.evals.evaluate import evaluate
from jaxzero.learn.batch import Batch
from jaxzero.learn.supervised import Examples
from jaxzero.learn.train import Trainer
from jaxzero.models.transformer import Params, param_targets
from jaxzero.parallel.hosts import by_primary
from jaxzero.progress import bar
from jaxzero.recipes.run import Run
from jaxzero.recipes.steps import Steps, train_flops

BASE_SEED = {"init": 0, "examples": 1, "self_play": 2, "replay": 3, "control": 4}


def validate(run: Run, params: Params, step: int) -> float:
  """Greedy accuracy on the validation problems; charged to the ledger's `eval`."""
  with run.goodput.phase("evaluate"):
    result, _ = evaluate(
      run.engine,
      params,
      run.validation_problems,
      "greedy",
      budget=run.engine.max_tokens,
      split="validation",
      step=step,
      batch_size=run.experiment.evaluation.batch_size,
    )
  charge_evaluation(run, result)
  return result["accuracy"]


def charge_evaluation(run: Run, result: dict[str, Any]) -> None:
  count = result["problems"]
  run.charge(
    "eval",
    result["flops_per_problem"] * count,
    result["wall_s"],
    result["forward_tokens_per_problem"] * count,
  )


def fit_supervised(
  run: Run, name: str, start: Params | None = None, max_flops: float | None = None
) -> Params:
  """Trains on the worked examples; returns the parameters of the best validation.

  Without `max_flops` it stops early, by patience; with it, it goes on to that many FLOPs (the
  control: more of the same supervision).

  Args:
    name: the stage's name: its checkpoint folder.
    start: parameters to go on from; None draws random ones.
  """
  experiment, config = run.experiment, run.experiment.supervised
  kind = "pretrain" if start is None else "control"
  step_flops = train_flops(run, config.batch_size)
  last_step = config.steps if max_flops is None else max(1, int(max_flops / step_flops))
  trainer = Trainer(
    experiment.model,
    run.tokenizer.vocab_size,
    config.optimizer,
    dataclasses.replace(experiment.improve.loss, kl_weight=0.0),
    run.mesh,
    last_step,
  )
  seed = experiment.seed * 10 + BASE_SEED["examples" if start is None else "control"]
  examples = Examples(run.worked_examples, experiment.context, 1, seed)
  if start is None:
    state = trainer.init(jax.random.key(experiment.seed * 10 + BASE_SEED["init"]))
  else:
    state = trainer.fresh_optimizer(start)
  steps = Steps(run, name, kind, trainer, state, config.batch_size, keep_best=True)
  best, stale = steps.meta.get("best", -1.0), steps.meta.get("stale", 0)
  patience = config.patience if max_flops is None else np.inf

  def batch(step: int, rows: np.ndarray) -> Batch:
    return examples.batch(step, config.batch_size, rows)

  with bar(f"{name} training", total=last_step, unit="steps", start=steps.step) as progress:
    while steps.step < last_step and stale < patience:
      until = min((steps.step // config.evaluate_every + 1) * config.evaluate_every, last_step)
      metrics = steps.advance(until, batch, progress=progress, best=best, stale=stale)
      accuracy = validate(run, steps.state.params, steps.step)
      stale = 0 if accuracy > best else stale + 1
      best = max(best, accuracy)
      run.log(
        kind=kind,
        step=steps.step,
        validation_accuracy=accuracy,
        flops=steps.step * step_flops,
        **metrics,
      )
      progress.describe(f"{name} training, validation {accuracy:.1%}")
      steps.save(accuracy, best=best, stale=stale)
      run.stop_point(f"step {steps.step} of {name}")
  return load_params(run, name, best=True)


def spent(run: Run) -> float:
  """Training FLOPs so far: pre-training, self-play and learning."""
  return sum(
    run.ledger.get(name, {}).get("flops", 0.0) for name in ("pretrain", "selfplay", "learn")
  )


def load_params(run: Run, stage: str, best: bool = False) -> Params:
  """Parameters of a stage's newest or best checkpoint, on the run's mesh."""
  checkpoints = Checkpoints(run.folder / "checkpoints" / stage, keep_best=best)
  step = by_primary(lambda: checkpoints.best() if best else checkpoints.latest)
  config = run.experiment.improve
  last = config.rounds * config.steps_per_round
  if step is None or (stage == "self_play" and step != last):
    raise UserError(
      f"the last checkpoint of {checkpoints.folder} is missing, but its stage is marked as done; "
      f"delete {run.folder / 'results'} and the same command makes it again."
    )
  target = param_targets(run.experiment.model, run.tokenizer.vocab_size, run.mesh)
  return checkpoints.restore(step, target)["params"]


def newest_state(folder: epath.Path, stage: str) -> dict[str, np.ndarray]:
  """A stage's newest parameters and optimizer as {path: array}, for comparing runs."""
  checkpoints = Checkpoints(folder / "checkpoints" / stage)
  assert checkpoints.latest is not None
  items = checkpoints.restore_as_saved(checkpoints.latest)
  leaves = jax.tree_util.tree_leaves_with_path([items["params"], items["optimizer"]])
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
