"""One round of self-play: a tree a problem, on problems without solutions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.models.transformer import Params
from jaxzero.parallel.rows import HostRows
from jaxzero.progress import bar
from jaxzero.search.config import PATH_ORDERS, TreeConfig
from jaxzero.search.engine import Engine
from jaxzero.search.foresee import foresee
from jaxzero.search.play import PlayConfig
from jaxzero.search.pool import Thinking, think
from jaxzero.search.record import trim
from jaxzero.selfplay import curriculum
from jaxzero.selfplay.episode import Episode
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import encode_prompt


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
  """A round of self-play."""

  play: PlayConfig = PlayConfig(tree=TreeConfig(num_simulations=96))
  noise: float = 0.3
  """Scale of the Gumbel noise on the roots' edges."""
  temperature: float = 1.0
  """Of the policy that is played."""
  episodes_per_round: int = 1024
  batch_size: int = 64
  samples: int = 8
  """Rules expert_iteration and grpo: independent samples of a problem."""
  curriculum: bool = False
  """A round's problems are those, of four times as many, that the model foresees to solve in 20 to
  80 % of its tries."""
  reanalysis_share: float = 0.0
  """Share of a round's problems that are stored ones which no search has solved yet, thought about
  again with the newest model (reanalysis, as in MuZero: Schrittwieser et al. 2020)."""

  def check(self) -> None:
    if self.batch_size < 1 or self.episodes_per_round < 1:
      raise UserError(
        f"episodes_per_round={self.episodes_per_round} and batch_size={self.batch_size} must be at "
        "least 1."
      )
    if not 0.0 < self.temperature <= 100.0 or not 0.0 <= self.noise <= 100.0:
      raise UserError(
        f"temperature={self.temperature} must lie above 0, noise={self.noise} at 0 or above, and "
        "both at most at 100."
      )
    if not 1 <= self.samples <= 1024:
      raise UserError(f"samples={self.samples} must lie in 1..1024.")
    if not 0.0 <= self.reanalysis_share <= 1.0:
      raise UserError(f"reanalysis_share={self.reanalysis_share} must lie between 0 and 1.")
    if self.play.tree.order not in PATH_ORDERS:
      raise UserError(
        f"self-play grows one tree a problem; order={self.play.tree.order} cannot: use one of "
        f"{', '.join(PATH_ORDERS)}."
      )

  def sampling(self) -> SelfPlayConfig:
    """The same rounds played by `samples` independent samples a problem, each to its end; they are
    drawn among the A likeliest tokens, and pay for the prefixes that they share once."""
    nodes = self.samples * self.play.max_tokens
    tree = dataclasses.replace(
      self.play.tree.along_paths("shared_samples", nodes), num_samples=self.samples
    )
    return dataclasses.replace(self, noise=0.0, play=dataclasses.replace(self.play, tree=tree))


def play_round(
  engine: Engine,
  params: Params,
  config: SelfPlayConfig,
  seed: int,
  round: int,
  model_step: int,
  again: Sequence[Problem] = (),
  progress: Callable[[float], Any] = lambda count: None,
) -> tuple[list[Episode], dict[str, float]]:
  """Plays one round's episodes; each host gets those of its share (`HostRows.share`).

  The first completion of a tree is the game as played. The search goes on where that game is lost,
  until it has found a right completion or spent its nodes. Problem and noise of an episode are a
  pure function of (seed, round, its number, again), with a curriculum of the parameters, too.

  Args:
    again: stored problems to think about once more; they come first.
    progress: told of the episodes that were finished, at the same points on every host.

  Returns:
    the episodes, and the whole round's figures: flops (of idle positions, too), occupancy and means
    over its episodes.
  """
  config.check()
  hosts = HostRows(engine.mesh)
  if config.episodes_per_round < hosts.parts:
    raise UserError(
      f"episodes_per_round={config.episodes_per_round} leaves some of the {hosts.parts} hosts "
      f"without an episode; use {hosts.parts} or more."
    )
  count = config.episodes_per_round
  numbers = np.arange(count)
  params = engine.gather(params)
  fresh, foreseen = new_problems(engine, params, config, seed, round)
  problems = [*again, *fresh][:count]
  round_key = jax.random.fold_in(jax.random.key(seed), round)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(round_key, numbers)
  with bar(f"self-play {round}", total=count, unit="episodes") as shown:

    def finished(number: float) -> None:
      shown.advance(number)
      progress(number)

    thinking = think(
      engine,
      params,
      problems,
      keys,
      config.play.tree.capacity,
      config.play.tree,
      verify_inside=True,
      noise=config.noise,
      temperature=config.temperature,
      batch_size=config.batch_size,
      keep_trees=count,
      compact=True,
      progress=finished,
      everywhere=False,
    )
  share = hosts.share(count)
  episodes = [
    _episode(engine, config, thinking, i, problems[n], f"{seed}-{round}-{n}", model_step)
    for i, n in enumerate(share)
  ]
  cost = {"flops": engine.flops(thinking.positions + foreseen), "occupancy": thinking.occupancy}
  return episodes, {**cost, **figures(hosts, episodes)}


def new_problems(
  engine: Engine, params: Params, config: SelfPlayConfig, seed: int, round: int
) -> tuple[list[Problem], int]:
  """A round's problems from the endless stream, and the positions that choosing them took."""
  count = config.episodes_per_round
  drawn = count * (curriculum.CANDIDATES if config.curriculum else 1)
  problems = [engine.task.problem("train", seed, round * drawn + i) for i in range(drawn)]
  if not config.curriculum:
    return problems, 0
  success, positions = foresee(engine, params, problems, config.batch_size)
  return [problems[i] for i in curriculum.choose(success, count)], positions


def figures(hosts: HostRows, episodes: Sequence[Episode]) -> dict[str, float]:
  """Counts and means over the episodes of all hosts."""
  total = hosts.total(
    {
      "episodes": len(episodes),
      "solved_share": sum(episode.right for episode in episodes),
      "found_share": sum(len(episode.harvested) > 0 for episode in episodes),
      "truncated_share": sum(episode.truncated for episode in episodes),
      "mean_tokens": sum(len(episode.tokens) for episode in episodes),
      "mean_forward_tokens": sum(episode.forward_tokens for episode in episodes),
    }
  )
  count = total["episodes"]
  return {name: value if name == "episodes" else value / count for name, value in total.items()}


def _episode(
  engine: Engine,
  config: SelfPlayConfig,
  thinking: Thinking,
  i: int,
  problem: Problem,
  episode_id: str,
  model_step: int,
) -> Episode:
  out: Any = thinking.insight  # numpy
  played, answer = out.played, out.answer
  length, found = int(played.length[i]), bool(answer.found[i])
  tokens = played.completion[i, :length]
  moves = int(answer.length[i]) if found else 0
  # A game that was lost because it was known to be is over; one that ran out of room is not.
  full = length == engine.max_tokens and tokens[-1] != engine.tokenizer.end_id
  tree = trim(thinking.trees[i])
  return Episode(
    episode_id=episode_id,
    problem_id=problem.id,
    prompt=problem.prompt,
    prompt_tokens=np.asarray(encode_prompt(engine.tokenizer, problem), np.int32),
    tokens=tokens,
    right=bool(out.played_right[i]),
    truncated=bool(out.ends[i] == 0 or full),
    harvested=answer.completion[i, :moves],
    candidates=out.candidates[i, :moves],
    weights=out.weights[i, :moves],
    values=out.values[i, :moves],
    visit_counts=out.visit_counts[i, :moves],
    forward_tokens=int(out.forward_tokens[i]),
    model_step=model_step,
    search=dataclasses.asdict(config.play),
    **{f"tree_{name}": array for name, array in tree._asdict().items()},
  )
