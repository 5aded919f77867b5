"""The whole story on one machine: learn from few examples, teach yourself, see what it bought."""

from __future__ import annotations

import functools
import resource
import sys
from typing import Any

import numpy as np

from jaxzero.checkpoints import Checkpoints
from jaxzero.evals.evaluate import evaluate
from jaxzero.files import PathLike
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import is_primary
from jaxzero.progress import bar
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.profiler import Window
from jaxzero.recipes.run import Run, config_dict, write_json
from jaxzero.recipes.stages import (
  charge_evaluation,
  fit_supervised,
  load_params,
  self_play_rounds,
  spent,
)
from jaxzero.recipes.trees import searched_problems
from jaxzero.search.request import SearchResult
from jaxzero.search.strategies import search
from jaxzero.tasks.base import Problem
from jaxzero.view.report import write_report


def quickstart(
  experiment: Experiment, folder: PathLike, profile: Window | None = None
) -> dict[str, Any]:
  """Runs every stage that is not finished yet; returns the summary (RUN/summary.json)."""
  with Run(folder, experiment, profile) as run:
    test = {
      "supervised": run.stage("supervised", lambda: supervised(run))["test"],
      "self_play": run.stage("self_play", lambda: self_play(run))["test"],
      "control": run.stage("control", lambda: control(run))["test"],
    }
    curves = search_curves(run)
    write_json(
      run.folder / "trees.json", run.stage("trees", lambda: searched_problems(run))["trees"]
    )
    parameters = experiment.model.parameters(run.tokenizer.vocab_size)
    summary = {
      "config": config_dict(experiment),
      "seed": experiment.seed,
      "task": run.task.name,
      "parameters": parameters,
      **test,
      **curves,
      "ledger": run.ledger,
      "wall_s": run.seconds,
      "peak_rss_bytes": peak_rss_bytes(),
    }
    write_json(run.folder / "summary.json", summary)
    if is_primary():
      write_report(run.folder)
  return summary


def test_accuracy(run: Run, params: Params, step: int) -> dict[str, Any]:
  """Greedy accuracy on the test problems, charged to the ledger."""
  result, _ = evaluate_at(run, params, step, run.test_problems, "greedy", run.engine.max_tokens)
  charge_evaluation(run, result)
  return result


def supervised(run: Run) -> dict[str, Any]:
  params = fit_supervised(run, "pretrain")
  return {"test": test_accuracy(run, params, trained_steps(run, "pretrain"))}


def self_play(run: Run) -> dict[str, Any]:
  params = self_play_rounds(run, load_params(run, "pretrain", best=True))
  return {"test": test_accuracy(run, params, trained_steps(run, "self_play"))}


def control(run: Run) -> dict[str, Any]:
  """More of the same supervision, for as many FLOPs as self-play and its learning took."""
  flops = spent(run) - run.ledger["pretrain"]["flops"]
  start = load_params(run, "pretrain", best=True)
  params = fit_supervised(run, "control", start, max_flops=flops)
  return {"test": test_accuracy(run, params, trained_steps(run, "control"))}


def trained_steps(run: Run, stage: str) -> int:
  """Train steps of a stage's last parameters, or of its best where it keeps those."""
  if stage == "self_play":
    return run.experiment.improve.rounds * run.experiment.improve.steps_per_round
  return Checkpoints(run.folder / "checkpoints" / stage).best() or 0


def search_curves(run: Run) -> dict[str, Any]:
  """Accuracy at budgets in multiples of the mean sampled episode, verifying inside if allowed.

  Every evaluation is a stage of its own: stopped, only the one that was going on is done again.
  """
  config = run.experiment.evaluation
  final, first = load_params(run, "self_play"), load_params(run, "pretrain", best=True)
  unit = run.stage("mean_episode", lambda: {"tokens": mean_episode(run, first)})["tokens"]
  curves: dict[str, Any] = {"unit_tokens": unit}
  kinds = [
    (name + suffix, strategy, params, trained_steps(run, stage))
    for suffix, params, stage in (("", final, "self_play"), ("_supervised", first, "pretrain"))
    for name, strategy in (("search", "mcts"), ("sample", "best_of_n"))
  ]
  total = len(kinds) * len(config.budgets)
  with bar("thinking on a budget", total=total, unit="evaluations") as progress:
    for name, strategy, params, step in kinds:
      curves[name] = []
      for multiple in config.budgets:
        point = run.stage(
          f"{name}_{multiple}x",
          functools.partial(curve_point, run, params, step, strategy, unit, multiple),
        )
        curves[name].append(point)
        progress.describe(f"thinking on a budget, {strategy} {multiple}x {point['accuracy']:.1%}")
        progress.advance()
  return curves


def mean_episode(run: Run, params: Params) -> float:
  """Mean length of sampled completions on the validation problems, in tokens."""
  sampled = search(
    run.engine,
    params,
    run.validation_problems,
    "sample",
    run.engine.max_tokens,
    seed=run.experiment.seed,
    batch_size=run.experiment.evaluation.batch_size,
  )
  return float(np.mean([len(result.tokens) for result in sampled]))


def curve_point(
  run: Run, params: Params, step: int, strategy: str, unit: float, multiple: float
) -> dict[str, Any]:
  """An `eval` object at `multiple` mean episodes, charged to the ledger."""
  budget = max(1, round(unit * multiple))
  result, _ = evaluate_at(run, params, step, run.test_problems, strategy, budget)
  charge_evaluation(run, result)
  return {**result, "multiple": multiple}


def evaluate_at(
  run: Run, params: Params, step: int, problems: list[Problem], strategy: str, budget: int
) -> tuple[dict[str, Any], list[SearchResult]]:
  """`evaluate` with the run's settings."""
  config = run.experiment.evaluation
  run.stop_point("an evaluation, which will be done again")
  with run.goodput.phase("evaluate"):
    return evaluate(
      run.engine,
      params,
      problems,
      strategy,
      budget,
      seed=run.experiment.seed,
      step=step,
      play=run.experiment.test_play,
      batch_size=config.batch_size,
    )


def peak_rss_bytes() -> int:
  """The most memory this process has held."""
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return int(peak if sys.platform == "darwin" else peak * 1024)
