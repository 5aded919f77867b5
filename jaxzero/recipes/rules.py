"""Learning rules: what a round plays, and what is learned from it.

`search` (AlphaZero's, the default) plays one tree search a problem and learns the solutions that
the searches found, and games as played. `expert_iteration` (ReST-EM: Singh et al. 2023; STaR:
Zelikman et al. 2022) draws independent samples and imitates those that are right. `grpo` (Shao et
al. 2024, with the corrections of Liu et al. 2025) draws the same samples and moves the policy
towards those of a problem that did better than their mean. The latter two never train the value
head. All write the same episodes: a group of samples is a tree whose prefixes are shared, and is
played for the FLOPs of that tree.
"""

from __future__ import annotations

from collections.abc import Iterator

import grain

from jaxzero.errors import UserError
from jaxzero.learn.samples import SampleWindow, group, right_samples
from jaxzero.learn.window import ReplayWindow
from jaxzero.parallel.hosts import gather_objects
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import BASE_SEED
from jaxzero.selfplay.episode import Episode, from_bytes
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.selfplay.run import SelfPlayConfig
from jaxzero.tasks.base import Problem


def playing(experiment: Experiment) -> SelfPlayConfig:
  """How the rule plays its rounds."""
  config = experiment.self_play
  return config if experiment.improve.rule == "search" else config.sampling()


def learning(run: Run, store: ReplayStore, round: int) -> ReplayWindow | SampleWindow:
  """What the rule learns in round `round`; its `batch(step, rows)` is pure in (seed, step, row).

  `grpo` learns from the round's own samples, the others from those of `replay_rounds` rounds.
  """
  experiment, config = run.experiment, run.experiment.improve
  seed = experiment.seed * 10 + BASE_SEED["replay"]
  window = _window(run, store, round, 1 if config.rule == "grpo" else config.replay_rounds)
  if config.rule == "search":
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
  samples = [
    sample
    for episode in _episodes(window)
    for sample in (
      group(episode, config.scale_by_std)
      if config.rule == "grpo"
      else right_samples(episode, config.keep)
    )
  ]
  return SampleWindow(
    samples,
    run.worked_examples,
    (seed, round),
    round * config.steps_per_round,
    experiment.context,
    config.batch_size,
    config.supervised_share,
  )


def unsolved(run: Run, store: ReplayStore, round: int) -> list[Problem]:
  """Stored problems for round `round` to think about again: those of the replay window that no
  search had solved, each once, in an order that depends on (seed, round) alone."""
  config = run.experiment.self_play
  wanted = int(config.reanalysis_share * config.episodes_per_round)
  if not wanted or not round:
    return []
  window = store.window(round - 1, run.experiment.improve.replay_rounds)
  order = store.sampler(window, (run.experiment.seed * 10 + BASE_SEED["self_play"], round))
  found: dict[str, bool] = {}
  for number in range(len(window)):
    episode = order[number]
    found[episode.problem_id] = found.get(episode.problem_id, False) or len(episode.harvested) > 0
  open_ = [problem_id for problem_id, solved in found.items() if not solved]
  return [run.task.parse(problem_id) for problem_id in open_[:wanted]]


def _window(
  run: Run, store: ReplayStore, round: int, rounds: int
) -> grain.sources.ArrayRecordDataSource:
  window = store.window(round, rounds)
  # A host that cannot read what others can would learn from other episodes than they.
  sizes = gather_objects(len(window))
  if len(set(sizes)) > 1:
    raise UserError(
      f"the hosts see {sizes} episodes in the window of round {round}; check that all of them can "
      f"read {store.folder}, then run the same command again."
    )
  return window


def _episodes(window: grain.sources.ArrayRecordDataSource) -> Iterator[Episode]:
  return (from_bytes(window[number]) for number in range(len(window)))
