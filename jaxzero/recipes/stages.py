"""The stages of a run: supervised training (and its longer-trained control), and the rounds of
self-play. Each goes on from its newest good checkpoint, and its data order depends on (seed, step)
alone, so a killed run ends in the same bits as one that was never killed."""

from __future__ import annotations

import dataclasses
import time
import warnings
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
from jaxzero.learn.window import ReplayWindow
from jaxzero.models.transformer import Params, param_targets
from jaxzero.parallel.hosts import by_primary, gather_objects, is_primary, jointly
from jaxzero.progress import bar
from jaxzero.recipes.run import Run
from jaxzero.recipes.steps import Steps, train_flops
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.episode import validate as validate_episode
from jaxzero.selfplay.replay import ReplayStore, ShardInfo
from jaxzero.selfplay.run import play_round
from jaxzero.tasks.base import Problem

_BASE_SEED = {"init": 0, "examples": 1, "self_play": 2, "replay": 3, "control": 4}


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
  seed = experiment.seed * 10 + _BASE_SEED["examples" if start is None else "control"]
  examples = Examples(run.worked_examples, experiment.context, 1, seed)
  if start is None:
    state = trainer.init(jax.random.key(experiment.seed * 10 + _BASE_SEED["init"]))
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


def self_play_rounds(run: Run, start: Params) -> Params:
  """Self-play, store, learn, validate, checkpoint; returns the last round's parameters."""
  experiment, config = run.experiment, run.experiment.improve
  config.check()
  last_step = config.rounds * config.steps_per_round
  trainer = Trainer(
    experiment.model,
    run.tokenizer.vocab_size,
    config.optimizer,
    config.loss,
    run.mesh,
    last_step,
    config.micro_batches,
  )
  state = trainer.fresh_optimizer(start)
  steps = Steps(run, "self_play", "learn", trainer, state, config.batch_size)
  store = open_replay(run, steps.step // config.steps_per_round)
  reference = jax.tree.map(lambda x: x.copy(), start) if config.loss.kl_weight else None
  done = steps.step // config.steps_per_round
  played: dict[str, Any] = steps.meta.get("played", {})
  with bar("self-play rounds", total=config.rounds, unit="rounds", start=done) as progress:
    while steps.step < last_step:
      round = steps.step // config.steps_per_round
      # Where a checkpoint lies inside of a round, that is played, and what it took is in the books.
      if steps.step % config.steps_per_round == 0:
        played = play(run, store, steps.state.params, round, steps.step)
      window = replay_window(run, store, round)
      until = (round + 1) * config.steps_per_round
      metrics = steps.advance(until, window.batch, reference, played=played)
      row = {**played, **metrics}
      if (round + 1) % config.evaluate_every == 0 or steps.step == last_step:
        row["validation_accuracy"] = validate(run, steps.state.params, steps.step)
        progress.describe(f"self-play rounds, validation {row['validation_accuracy']:.1%}")
      run.log(
        kind="round", round=round, step=steps.step - config.steps_per_round, flops=spent(run), **row
      )
      progress.advance(1)
      steps.save()
      run.stop_point(f"step {steps.step} of self_play")
  return steps.state.params


def play(run: Run, store: ReplayStore, params: Params, round: int, step: int) -> dict[str, Any]:
  """Plays and commits a round, unless it is stored already; returns its figures.

  Each host plays its share and writes it as a shard; the first one commits them all.
  """
  figures = store.figures(round)
  if figures is None:
    config, seed = run.experiment.self_play, run.experiment.seed * 10 + _BASE_SEED["self_play"]
    begin = time.monotonic()
    with run.goodput.phase("self_play"):
      episodes, figures = play_round(
        run.engine,
        params,
        config,
        seed,
        round,
        step,
        unsolved(run, store, round),
        lambda _: run.stop_point(f"round {round} of self-play, which will be played again"),
      )
      for episode in episodes:
        validate_episode(episode, run.tokenizer.vocab_size)
    with run.goodput.phase("stall"):
      figures["seconds"] = time.monotonic() - begin
      _commit(run, store, round, episodes, figures)
  flops, seconds = figures.pop("flops"), figures.pop("seconds")
  run.charge("selfplay", flops, seconds, figures["mean_forward_tokens"] * figures["episodes"])
  return figures


def _commit(
  run: Run, store: ReplayStore, round: int, episodes: list[Episode], figures: dict[str, Any]
) -> None:
  hosts = run.hosts

  def stage() -> dict[str, Any] | None:
    if not hosts.is_leader:
      return None
    return dataclasses.asdict(store.stage(round, hosts.part, hosts.parts, episodes))

  shards = [ShardInfo(**one) for one in jointly(stage) if one]
  by_primary(lambda: store.commit(round, shards, figures))
  if not is_primary():
    store.commit(round, shards, figures)
  run.goodput.commit()


def open_replay(run: Run, round: int) -> ReplayStore:
  """The replay of all rounds that were committed, also of one that is not learned from yet; those
  that round `round` and later ones learn from are checked."""
  folder = run.folder / "episodes"
  first = max(0, round - run.experiment.improve.replay_rounds + 1)

  # The first host's store sweeps what killed writers left, so it is opened once, before the others
  # write.
  opened: list[ReplayStore] = []

  def checked() -> list[str]:
    opened.append(ReplayStore(folder))
    return opened[0].verify(first)

  damage = by_primary(checked)
  if damage:
    raise UserError(f"{' '.join(damage)} Run the same command again to go on without it.")
  store = opened[0] if opened else ReplayStore(folder, primary=False)
  gone = sorted(set(range(first, round)) - set(store.rounds))
  if gone and is_primary():
    warnings.warn(f"{folder} has lost rounds {gone}; learning goes on without them.", stacklevel=2)
  return store


def replay_window(run: Run, store: ReplayStore, round: int) -> ReplayWindow:
  experiment, config = run.experiment, run.experiment.improve
  seed = experiment.seed * 10 + _BASE_SEED["replay"]
  window = store.window(round, config.replay_rounds)
  # A host that cannot read what others can would learn from other episodes than they.
  sizes = gather_objects(len(window))
  if len(set(sizes)) > 1:
    raise UserError(
      f"the hosts see {sizes} episodes in the window of round {round}; check that all of them can "
      f"read {store.folder}, then run the same command again."
    )
  return ReplayWindow(
    store.sampler(window, (seed, round)),
    run.worked_examples,
    seed,
    experiment.context,
    experiment.self_play.play.tree.num_candidates,
    config.batch_size,
    config.supervised_share,
    config.solution_share,
    config.soft_targets,
  )


def unsolved(run: Run, store: ReplayStore, round: int) -> list[Problem]:
  """Stored problems for round `round` to think about again: those of the replay window that no
  search had solved, each once, in an order that depends on (seed, round) alone."""
  config = run.experiment.self_play
  wanted = int(config.reanalysis_share * config.episodes_per_round)
  if not wanted or not round:
    return []
  window = store.window(round - 1, run.experiment.improve.replay_rounds)
  order = store.sampler(window, (run.experiment.seed * 10 + _BASE_SEED["self_play"], round))
  found: dict[str, bool] = {}
  for number in range(len(window)):
    episode = order[number]
    found[episode.problem_id] = found.get(episode.problem_id, False) or len(episode.harvested) > 0
  open_ = [problem_id for problem_id, solved in found.items() if not solved]
  return [run.task.parse(problem_id) for problem_id in open_[:wanted]]


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
