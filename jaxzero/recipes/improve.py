"""Self-play and learning from it, in rounds: play, store, learn, validate, checkpoint.

What a round plays and what is learned from it is the learning rule's (`jaxzero.recipes.rules`); the
loop, its books and its checkpoints are the same for all, so rules are compared on one ledger.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from typing import Any

import jax

from jaxzero.errors import UserError
from jaxzero.learn.train import Trainer
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import by_primary, is_primary, jointly
from jaxzero.progress import bar
from jaxzero.recipes import rules
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import BASE_SEED, spent, validate
from jaxzero.recipes.steps import Steps
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.episode import validate as validate_episode
from jaxzero.selfplay.replay import ReplayStore, ShardInfo
from jaxzero.selfplay.run import play_round


def improve(run: Run, start: Params, max_flops: float | None = None) -> Params:
  """The rounds of `run.experiment.improve`; returns the last one's parameters.

  Args:
    start: parameters of the first round.
    max_flops: goes on to so many FLOPs of self-play and learning, whatever the configured number of
      rounds (the learning rate still decays over that number). The round that reaches it is the
      last, so it is overshot by less than one.
  """
  experiment, config = run.experiment, run.experiment.improve
  config.check()
  last_step = config.rounds * config.steps_per_round
  trainer = Trainer(
    experiment.model,
    run.tokenizer.vocab_size,
    config.optimizer,
    config.loss,
    run.mesh,
    config.steps_per_round if config.restart else last_step,
    config.micro_batches,
  )
  # Train steps give up what they move.
  base = _copy(start) if config.loss.kl_weight or config.restart else None
  reference = base if config.loss.kl_weight else None
  state = trainer.fresh_optimizer(start)
  steps = Steps(run, "self_play", "learn", trainer, state, config.batch_size)
  done = steps.step // config.steps_per_round
  store = open_replay(run, done)
  played: dict[str, Any] = steps.meta.get("played", {})

  def goes_on() -> bool:
    inside_of_a_round = steps.step % config.steps_per_round > 0
    wanted = steps.step < last_step if max_flops is None else _improving(run) < max_flops
    return inside_of_a_round or wanted

  with bar("self-play rounds", total=config.rounds, unit="rounds", start=done) as progress:
    while goes_on():
      round = steps.step // config.steps_per_round
      # Where a checkpoint lies inside of a round, that is played, and what it took is in the books.
      if steps.step % config.steps_per_round == 0:
        played = play(run, store, steps.state.params, round, steps.step)
        if config.restart:
          steps.state = trainer.fresh_optimizer(_copy(base))
      batches = rules.learning(run, store, round)
      until = (round + 1) * config.steps_per_round
      metrics = steps.advance(until, batches.batch, reference, played=played)
      row = {**played, **metrics}
      if (round + 1) % config.evaluate_every == 0 or not goes_on():
        row["validation_accuracy"] = validate(run, steps.state.params, steps.step)
        progress.describe(f"self-play rounds, validation {row['validation_accuracy']:.1%}")
      run.log(
        kind="round", round=round, step=steps.step - config.steps_per_round, flops=spent(run), **row
      )
      progress.advance(1)
      steps.save()
      run.stop_point(f"step {steps.step} of self_play")
  return steps.state.params


def _copy(params: Params | None) -> Params:
  return jax.tree.map(lambda x: x.copy(), params)


def _improving(run: Run) -> float:
  """FLOPs of self-play and learning so far."""
  return sum(run.ledger.get(name, {}).get("flops", 0.0) for name in ("selfplay", "learn"))


def play(run: Run, store: ReplayStore, params: Params, round: int, step: int) -> dict[str, Any]:
  """Plays and commits a round, unless it is stored already; returns its figures.

  Each host plays its share and writes it as a shard; the first one commits them all.
  """
  figures = store.figures(round)
  if figures is None:
    seed = run.experiment.seed * 10 + BASE_SEED["self_play"]
    begin = time.monotonic()
    with run.goodput.phase("self_play"):
      episodes, figures = play_round(
        run.engine,
        params,
        rules.playing(run.experiment),
        seed,
        round,
        step,
        rules.unsolved(run, store, round),
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
