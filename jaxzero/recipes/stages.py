"""The stages of a run: supervised training (and its longer-trained control), and the rounds of
self-play. Each goes on from its newest checkpoint, and its data order depends on (seed, step)
alone, so a killed run ends in the same bits as one that was never killed."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Any

import jax
import numpy as np

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.evals.evaluate import evaluate
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.supervised import Examples
from jaxzero.learn.train import Trainer, TrainState
from jaxzero.models.transformer import Params, param_targets
from jaxzero.parallel.hosts import barrier, is_primary
from jaxzero.parallel.sharding import shard_batch
from jaxzero.progress import bar
from jaxzero.recipes.run import Run
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.episode import validate as validate_episode
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.selfplay.run import play_round
from jaxzero.tasks.base import Problem

_BASE_SEED = {"init": 0, "examples": 1, "self_play": 2, "replay": 3, "control": 4}


def validate(run: Run, params: Params, step: int) -> float:
  """Greedy accuracy on the validation problems; charged to the ledger's `eval`."""
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


def train_flops(run: Run, batch_size: int) -> float:
  """FLOPs of one train step: forward and backward (3x) over every padded position."""
  length = run.experiment.context
  per_token = run.experiment.model.flops_per_token(run.tokenizer.vocab_size, length)
  return 3.0 * batch_size * length * per_token


def fit_supervised(
  run: Run, name: str, start: Params | None = None, max_flops: float | None = None
) -> Params:
  """Trains on the worked examples; returns the parameters of the best validation.

  Without `max_flops` it stops early, by patience; with it, it goes on to that many FLOPs (the
  control: more of the same supervision).

  Args:
    name: the stage's name: its checkpoint folder, its metrics' kind.
    start: parameters to go on from; None draws random ones.
  """
  experiment, config = run.experiment, run.experiment.supervised
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
  checkpoints = Checkpoints(run.folder / "checkpoints" / name, keep_best=True)
  seed = experiment.seed * 10 + _BASE_SEED["examples" if start is None else "control"]
  examples = Examples(run.worked_examples, experiment.context, 1, seed)
  if start is None:
    state = trainer.init(jax.random.key(experiment.seed * 10 + _BASE_SEED["init"]))
  else:
    state = trainer.fresh_optimizer(start)
  state, meta = _resume(run, checkpoints, trainer, state)
  step, best, stale = meta.get("step", 0), meta.get("best", -1.0), meta.get("stale", 0)
  patience = config.patience if max_flops is None else np.inf
  with bar(f"{name} training", total=last_step, unit="steps", start=step) as progress:
    while step < last_step and stale < patience:
      begin = time.monotonic()
      until = min(step + config.evaluate_every, last_step)
      metrics: dict[str, Any] = {}
      for number in range(step, until):
        batch = shard_batch(run.mesh, examples.batch(number, config.batch_size))
        state, metrics = trainer.train_step(state, batch)
        progress.advance(1)
      metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
      done, step = until - step, until
      tokens = done * config.batch_size * experiment.context
      run.charge(
        "pretrain" if start is None else "control",
        done * step_flops,
        time.monotonic() - begin,
        float(tokens),
      )
      accuracy = validate(run, state.params, step)
      stale = 0 if accuracy > best else stale + 1
      best = max(best, accuracy)
      run.log(
        kind="pretrain" if start is None else "control",
        step=step,
        validation_accuracy=accuracy,
        flops=step * step_flops,
        **metrics,
      )
      progress.describe(f"{name} training, validation {accuracy:.1%}")
      meta = {"step": step, "best": best, "stale": stale, **run.commit()}
      checkpoints.save(
        step, state.params, _moved(state), {"seed": seed, "step": step}, meta, accuracy
      )
  return load_params(run, name, best=True)


def self_play_rounds(run: Run, start: Params) -> Params:
  """Self-play, store, learn, validate, checkpoint; returns the last round's parameters."""
  experiment, config = run.experiment, run.experiment.improve
  config.check()
  trainer = Trainer(
    experiment.model,
    run.tokenizer.vocab_size,
    config.optimizer,
    config.loss,
    run.mesh,
    config.rounds * config.steps_per_round,
    config.micro_batches,
  )
  checkpoints = Checkpoints(run.folder / "checkpoints" / "self_play")
  worked = run.worked_examples
  state, meta = _resume(run, checkpoints, trainer, trainer.fresh_optimizer(start))
  first = meta.get("round", -1) + 1
  store = _open_store(run, first)
  reference = jax.tree.map(lambda x: x.copy(), start) if config.loss.kl_weight else None
  seed = experiment.seed * 10 + _BASE_SEED["self_play"]
  with bar("self-play rounds", total=config.rounds, unit="rounds", start=first) as progress:
    for round in range(first, config.rounds):
      begin = time.monotonic()
      step = round * config.steps_per_round
      episodes, cost = play_round(
        run.engine,
        state.params,
        experiment.self_play,
        seed,
        round,
        step,
        unsolved(run, store, round),
      )
      for episode in episodes:
        validate_episode(episode, run.tokenizer.vocab_size)
      store = _store_round(run, store, round, episodes)
      played = time.monotonic()
      run.charge("selfplay", cost["flops"], played - begin, cost["forward_tokens"])
      window = ReplayWindow(run, store, worked, round)
      metrics: dict[str, Any] = {}
      for number in range(step, step + config.steps_per_round):
        batch = shard_batch(run.mesh, window.batch(number))
        state, metrics = trainer.train_step(state, batch, reference)
      metrics = {key: float(value) for key, value in jax.device_get(metrics).items()}
      learned = config.steps_per_round * config.batch_size
      run.charge(
        "learn",
        config.steps_per_round * train_flops(run, config.batch_size),
        time.monotonic() - played,
        float(learned * experiment.context),
      )
      row = {**episode_figures(episodes), "occupancy": cost["occupancy"], **metrics}
      if (round + 1) % config.evaluate_every == 0 or round + 1 == config.rounds:
        row["validation_accuracy"] = validate(run, state.params, step + config.steps_per_round)
        progress.describe(f"self-play rounds, validation {row['validation_accuracy']:.1%}")
      run.log(kind="round", round=round, step=step, flops=spent(run), **row)
      progress.advance(1)
      data = {"seed": seed, "step": step + config.steps_per_round, "round": round}
      meta = {"round": round, **run.commit()}
      checkpoints.save(round, state.params, _moved(state), data, meta)
  return state.params


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


def _open_store(run: Run, first: int) -> ReplayStore:
  """The replay as it was before round `first`; only the primary host changes it."""
  folder = run.folder / "episodes"
  damage: list[str] = []
  if is_primary():
    store = ReplayStore(folder)
    store.discard_after(first - 1)
    damage = store.verify()
  barrier(f"replay opened at {first}")
  if damage:
    raise UserError(f"{' '.join(damage)} Run the same command again to go on without it.")
  return store if is_primary() else ReplayStore(folder, read_only=True)


def _store_round(run: Run, store: ReplayStore, round: int, episodes: list) -> ReplayStore:
  """Commits a round's episodes; returns the store in which every host sees them."""
  if is_primary():
    store.write(round, episodes)
  barrier(f"round {round} stored")
  return store if is_primary() else ReplayStore(store.folder, read_only=True)


def spent(run: Run) -> float:
  """Training FLOPs so far: pre-training, self-play and learning."""
  return sum(
    run.ledger.get(name, {}).get("flops", 0.0) for name in ("pretrain", "selfplay", "learn")
  )


class ReplayWindow:
  """Training batches from the newest rounds, each a pure function of (seed, step).

  A share of the rows are solutions that the search found where the game as played was lost: there
  it knew better than the policy. The others are games as they were played, the lost ones for their
  value alone.
  """

  def __init__(self, run: Run, store: ReplayStore, worked: list, round: int):
    experiment, self.config = run.experiment, run.experiment.improve
    self.length = experiment.context
    self.num_candidates = experiment.self_play.play.tree.num_candidates
    self.seed = experiment.seed * 10 + _BASE_SEED["replay"]
    self.worked = worked
    self.store = store
    self.window = store.window(round, self.config.replay_rounds)
    self.sampler = store.sampler(self.window, (self.seed, round))

  def batch(self, step: int) -> batch_lib.Batch:
    config = self.config
    supervised = int(config.batch_size * config.supervised_share)
    solutions = int(config.batch_size * config.solution_share)
    arrays = batch_lib.empty(config.batch_size, self.length, self.num_candidates)
    random = np.random.default_rng((self.seed, step))
    for row in range(supervised):
      prompt, completion = self.worked[random.integers(len(self.worked))]
      batch_lib.put_text(arrays, row, prompt, completion)
    number = step * config.batch_size * 8
    for row in range(supervised, config.batch_size):
      episode = self.sampler[number]
      number += 1
      if row < supervised + solutions:
        for _ in range(7):  # not every episode holds one
          if _taught(episode):
            break
          episode = self.sampler[number]
          number += 1
      if row < supervised + solutions and _taught(episode):
        batch_lib.put_solution(arrays, row, episode, config.soft_targets)
      else:
        batch_lib.put_episode(arrays, row, episode, config.soft_targets)
    return batch_lib.to_batch(arrays)


def _taught(episode: Episode) -> bool:
  """Whether the search found what the game as played did not."""
  return len(episode.harvested) > 0 and not episode.right


def episode_figures(episodes: list) -> dict[str, float]:
  """Means over a round's episodes."""
  lengths = np.array([len(episode.tokens) for episode in episodes])
  spent = np.array([episode.forward_tokens for episode in episodes])
  return {
    "episodes": len(episodes),
    "solved_share": float(np.mean([episode.right for episode in episodes])),
    "found_share": float(np.mean([len(e.harvested) > 0 for e in episodes])),
    "truncated_share": float(np.mean([episode.truncated for episode in episodes])),
    "mean_tokens": float(lengths.mean()),
    "mean_forward_tokens": float(spent.mean()),
  }


def load_params(run: Run, stage: str, best: bool = False) -> Params:
  """Parameters of a stage's newest or best checkpoint, on the run's mesh."""
  checkpoints = Checkpoints(run.folder / "checkpoints" / stage, keep_best=best)
  step = checkpoints.best() if best else checkpoints.latest
  if step is None:
    raise UserError(
      f"{checkpoints.folder} has no checkpoint left, but its stage is marked as done; delete "
      f"{run.folder / 'results'} and the same command makes it again."
    )
  target = param_targets(run.experiment.model, run.tokenizer.vocab_size, run.mesh)
  return checkpoints.restore(step, target)["params"]


def newest_state(folder: pathlib.Path, stage: str) -> dict[str, np.ndarray]:
  """A stage's newest parameters and optimizer as {path: array}, for comparing runs."""
  checkpoints = Checkpoints(folder / "checkpoints" / stage)
  assert checkpoints.latest is not None
  items = checkpoints.restore_as_saved(checkpoints.latest)
  leaves = jax.tree_util.tree_leaves_with_path([items["params"], items["optimizer"]])
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _resume(
  run: Run, checkpoints: Checkpoints, trainer: Trainer, state: TrainState
) -> tuple[TrainState, dict[str, Any]]:
  """The newest checkpoint's state and meta, with the run's books rewound to it."""
  latest = checkpoints.latest
  if latest is None:
    checkpoints.remove_uncommitted()
    return state, {}
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, trainer.shardings
  )
  loaded = checkpoints.restore(latest, abstract.params, _moved(abstract))
  run.rewind(loaded["meta"])
  step = jax.device_put(np.int32(loaded["data"]["step"]), trainer.shardings.step)
  moved = loaded["optimizer"]
  optimizer, iterate = moved if state.iterate is not None else (moved, None)
  state = TrainState(step=step, params=loaded["params"], optimizer=optimizer, iterate=iterate)
  return state, loaded["meta"]


def _moved(state: TrainState) -> Any:
  """What a checkpoint keeps beside the model to go on from it."""
  return state.optimizer if state.iterate is None else [state.optimizer, state.iterate]
