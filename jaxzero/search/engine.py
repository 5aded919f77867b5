"""The door of the search room: problems in, answers and their cost out, whatever the strategy.

An `Engine` holds a task, a tokenizer, a model's shape and a mesh, and the compiled functions.
`gather` makes parameters whole once for many calls. Every episode has a key of its own, so results
do not depend on the number of devices or on how problems are batched.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params
from jaxzero.parallel.hosts import fetch
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search import lanes as lanes_lib
from jaxzero.search import play as play_lib
from jaxzero.search import rollouts as rollouts_lib
from jaxzero.search.compiled import Compiled, Thinker
from jaxzero.search.config import PATH_ORDERS, Lanes, TreeConfig
from jaxzero.search.expand import Weights
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import encode_prompt


class Engine(Compiled):
  """Compiled thinking for one model shape, task and mesh.

  Args:
    scorer: the shape of a process reward model that reads every token beside the policy, and whose
      values take the place of the value head's. Parameters are then {"policy": ..., "prm": ...}.
  """

  def scored(self, scorer: ModelConfig) -> Engine:
    """This engine with a process reward model beside its policy."""
    return Engine(
      self.model, self.tokenizer, self.task, self.mesh, self.max_prompt, self.max_tokens, scorer
    )

  def encode(self, problems: Sequence[Problem], rows: int) -> dict[str, np.ndarray]:
    """Prompts of up to `rows` problems as padded host arrays; rows beyond them are empty."""
    prompts = np.full((rows, self.max_prompt), self.tokenizer.pad_id, np.int32)
    lengths = np.zeros(rows, np.int32)
    facts = np.zeros((rows, *self.task.problem_array(problems[0]).shape), np.int32)
    for row, problem in enumerate(problems):
      tokens = encode_prompt(self.tokenizer, problem)
      if len(tokens) > self.max_prompt:
        raise UserError(
          f"problem {problem.prompt!r} takes {len(tokens)} tokens, over this model's prompt limit "
          f"of {self.max_prompt}; give a shorter problem."
        )
      prompts[row, : len(tokens)], lengths[row] = tokens, len(tokens)
      facts[row] = self.task.problem_array(problem)
    return {"prompts": prompts, "prompt_length": lengths, "facts": facts}

  def rows(self, batch_size: int) -> int:
    """The batch's rows: `batch_size`, rounded up to the mesh's shards."""
    shards = batch_shards(self.mesh)
    return -(-batch_size // shards) * shards

  def flops(self, positions: float, tree_slots: int = 0) -> float:
    """Forward FLOPs of so many positions, each over the whole cache: masked slots cost, too."""
    context = self.max_prompt + self.max_tokens + tree_slots + 1
    each = self.model.flops_per_token(self.tokenizer.vocab_size, context)
    if self.scorer is not None:  # its next-token logits are never computed
      each += self.scorer.flops_per_token(0, context)
    return positions * each

  @property
  def tokens_per_position(self) -> int:
    """Forward tokens of one position: one for each model."""
    return 1 if self.scorer is None else 2

  @property
  def longest(self) -> int:
    """Forward tokens of the longest completion."""
    return self.max_tokens * self.tokens_per_position

  def decode(
    self,
    params: Params,
    batch: dict[str, Any],
    keys: jax.Array,
    temperature: float,
    verify_inside: bool = False,
  ) -> dict[str, np.ndarray]:
    """Greedy (temperature 0) or sampled episodes; host arrays [B, ...] on every process.

    verify_inside: an episode ends where the verifier knows that it is lost.
    """
    arrays = shard_batch(self.mesh, {**batch, "keys": np.asarray(jax.random.key_data(keys))})
    return fetch(self._decode(params, arrays, np.float32(temperature), np.bool_(verify_inside)))

  def roll_out(
    self,
    params: Params,
    batch: dict[str, Any],
    keys: jax.Array,
    count: int,
    temperature: float,
    verify_inside: bool,
  ) -> rollouts_lib.Rollouts:
    """`count` completions sampled from each prefix (`jaxzero.search.rollouts.roll_out`), as host
    arrays on every process.

    batch: what `encode` gives, with the prefixes: completion [B, max_tokens], length [B] int32.
    """
    arrays = {**batch, "keys": np.asarray(jax.random.key_data(keys))}
    on_mesh = shard_batch(self.mesh, arrays)
    scalars = np.float32(temperature), np.bool_(verify_inside)
    return fetch(self._roll_out(count)(params, on_mesh, *scalars))

  def foresee(self, params: Params, batch: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """What the model says where a prompt ends, before any thinking, on every process.

    Returns:
      value [B] float32, P(right), and logits [B, V] float32, log-probabilities of the first token.
    """
    return fetch(self._foresee(params, shard_batch(self.mesh, batch)))

  def lanes(
    self,
    params: Params,
    batch: dict[str, Any],
    keys: jax.Array,
    budget: np.ndarray,
    count: np.ndarray,
    temperature: float,
    strategy: str,
    config: Lanes,
    verify_inside: bool,
  ) -> lanes_lib.Lines:
    """A step-level search a problem (`jaxzero.search.lanes.grow`), as host arrays on every process.

    count: [B] int32, each problem's lanes.
    """
    arrays = {
      **batch,
      "keys": np.asarray(jax.random.key_data(keys)),
      "budget": budget,
      "count": count,
    }
    rows = config.rows(int(count.max()))
    grow = self._grow(rows, config.group(strategy, rows))
    return fetch(
      grow(
        params,
        shard_batch(self.mesh, arrays),
        np.float32(temperature),
        np.int32(config.expansion),
        np.int32(config.ahead(strategy)),
        np.bool_(verify_inside),
      )
    )

  def play(
    self,
    params: Params,
    batch: dict[str, Any],
    keys: jax.Array,
    budget: np.ndarray,
    noise: float,
    temperature: float,
    config: PlayConfig,
    verify_inside: bool,
    stop_when_found: bool,
    reserve: int = 0,
    keep_trees: int = 1,
  ) -> play_lib.Played:
    """Episodes token by token, forks searched by values (`jaxzero.search.play.play`), as host
    arrays on every process."""
    arrays = {
      **batch,
      "keys": np.asarray(jax.random.key_data(keys)),
      "budget": budget,
      "noise": np.full(len(budget), noise, np.float32),
      "temperature": np.full(len(budget), temperature, np.float32),
    }
    static = dataclasses.replace(config, tree=config.tree.static())
    compiled = self._play(static, verify_inside, stop_when_found, reserve, keep_trees)
    weights = make_weights(config.tree, 1.0)
    return fetch(compiled(params, shard_batch(self.mesh, arrays), weights))

  def thinker(
    self, config: TreeConfig, verify_inside: bool, stop_when_found: bool = True
  ) -> Thinker:
    """The compiled functions of one tree a problem; UserError for an order by values."""
    if config.order not in PATH_ORDERS:
      raise UserError(
        f"order={config.order} searches token by token; one tree a problem takes one of "
        f"{', '.join(PATH_ORDERS)}."
      )
    return self._thinker(config.static(), verify_inside, stop_when_found)


def make_weights(config: TreeConfig, temperature: float) -> Weights:
  return Weights(**{k: np.float32(v) for k, v in config.weights(temperature).items()})
