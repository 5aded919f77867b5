"""One round of self-play: batches of episodes by tree search on problems without solutions."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.models.transformer import Params
from jaxzero.progress import bar
from jaxzero.search.engine import Engine
from jaxzero.search.mcts import MCTSConfig
from jaxzero.search.play import PlayConfig
from jaxzero.search.tree import to_dict
from jaxzero.selfplay.episode import Episode


@dataclasses.dataclass(frozen=True)
class SelfPlayConfig:
  play: PlayConfig = PlayConfig(mcts=MCTSConfig(num_simulations=96, order="best_first"))
  noise: float = 1.0
  """Scale of the Gumbel noise at searched roots."""
  temperature: float = 1.0
  """Of tokens sampled at forks that are not searched."""
  episodes_per_round: int = 512
  batch_size: int = 256
  keep_trees: int = 1
  """Episodes a batch whose first search tree is stored whole."""

  def check(self) -> None:
    if (
      self.batch_size < 1
      or self.episodes_per_round < 1
      or self.episodes_per_round % self.batch_size
    ):
      raise UserError(
        f"episodes_per_round={self.episodes_per_round} must be a multiple of "
        f"batch_size={self.batch_size}."
      )


def play_round(
  engine: Engine, params: Params, config: SelfPlayConfig, seed: int, round: int, model_step: int
) -> tuple[list[Episode], dict[str, float]]:
  """Plays one round's episodes.

  Problem and noise of an episode are a pure function of (seed, round, its number).

  Returns:
    the episodes, and counts: forward_tokens, positions (idle ones too), flops.
  """
  config.check()
  episodes: list[Episode] = []
  cost = {"forward_tokens": 0.0, "positions": 0.0}
  round_key = jax.random.fold_in(jax.random.key(seed), round)
  with bar(f"self-play {round}", total=config.episodes_per_round, unit="episodes") as progress:
    for begin in range(0, config.episodes_per_round, config.batch_size):
      numbers = np.arange(begin, begin + config.batch_size)
      first = round * config.episodes_per_round
      problems = [engine.task.problem("train", seed, first + int(i)) for i in numbers]
      batch = engine.encode(problems, engine.rows(config.batch_size))
      rows = batch["prompts"].shape[0]
      keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(round_key, begin + np.arange(rows))
      played = engine.play(
        params,
        batch,
        keys,
        np.full(rows, np.iinfo(np.int32).max, np.int32),
        config.noise,
        config.temperature,
        config.play,
        verify_inside=True,
        stop_when_found=False,
        keep_trees=config.keep_trees,
      )
      for row, problem in enumerate(problems):
        episode_id = f"{seed}-{round}-{begin + row}"
        episodes.append(
          _episode(engine, config, played, batch, row, problem, episode_id, model_step)
        )
      cost["forward_tokens"] += float(played.forward_tokens[: len(problems)].sum())
      cost["positions"] += float(played.positions.sum()) + rows * engine.max_prompt
      progress.advance(len(problems))
  slots = config.play.mcts.num_simulations
  return episodes, {**cost, "flops": engine.flops(cost["positions"], slots)}


def _episode(
  engine: Engine,
  config: SelfPlayConfig,
  played: Any,
  batch: dict[str, np.ndarray],
  row: int,
  problem: Any,
  episode_id: str,
  model_step: int,
) -> Episode:
  length = int(played.length[row])
  moves = jax.tree.map(lambda x: x[row, :length], played.moves)
  tree = None
  if row < config.keep_trees and moves.searched.any():
    first = int(np.argmax(moves.searched))
    tree = to_dict(
      played.trees, row, engine.tokenizer, problem.prompt, int(played.completion[row, first])
    )
  found_length = int(played.found.length[row]) if played.found.found[row] else 0
  return Episode(
    episode_id=episode_id,
    problem_id=problem.id,
    prompt=problem.prompt,
    prompt_tokens=batch["prompts"][row, : batch["prompt_length"][row]],
    tokens=played.completion[row, :length],
    searched=moves.searched,
    candidates=moves.candidates,
    weights=moves.weights,
    root_values=moves.root_values,
    visit_counts=moves.visit_counts,
    right=bool(played.right[row]),
    truncated=not bool(played.finished[row]),
    harvested=played.found.completion[row, :found_length],
    model_step=model_step,
    search=dataclasses.asdict(config.play),
    tree=tree,
  )
