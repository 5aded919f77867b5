"""The compiled functions of the search room, for one model shape, task and mesh.

Search runs inside `shard_map` over data and fsdp, where nothing is communicated; a split over
tensor adds up two activations a layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxzero.models.config import ModelConfig
from jaxzero.models.scored import Model, ScoredModel
from jaxzero.models.transformer import Params, bind, gatherer
from jaxzero.parallel.sharding import RULES
from jaxzero.search import game as game_lib
from jaxzero.search import lanes as lanes_lib
from jaxzero.search import play as play_lib
from jaxzero.search import rollouts as rollouts_lib
from jaxzero.search import think as think_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.play import PlayConfig
from jaxzero.search.tree import compact
from jaxzero.tasks.base import Task
from jaxzero.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Thinker:
  """Compiled: start(params, batch, weights), advance(params, thoughts, weights, quota),
  swap(params, thoughts, fresh, weights) and record(tree)."""

  start: Any
  advance: Any
  swap: Any
  record: Any


class Compiled:
  """What an `Engine` calls: jitted functions of (gathered parameters, sharded batch, scalars)."""

  def __init__(
    self,
    model: ModelConfig,
    tokenizer: Tokenizer,
    task: Task,
    mesh: Mesh,
    max_prompt: int = 16,
    max_tokens: int = 30,
    scorer: ModelConfig | None = None,
  ):
    self.scorer = scorer
    self.model, self.tokenizer, self.task, self.mesh = model, tokenizer, task, mesh
    self.max_prompt, self.max_tokens = max_prompt, max_tokens
    self._verifier = task.device_verifier(tokenizer)
    self.gather = self._gatherer()
    self._decode = jax.jit(self._on_mesh(self._decode_shard))
    self._foresee = jax.jit(self._on_mesh(self._foresee_shard))

  def judge(self, facts: jax.Array) -> jax.Array:
    """The verifier's first states [B, S]."""
    return self._verifier.start(facts)

  @property
  def delimiters(self) -> tuple[int, ...]:
    return (self.tokenizer.step_id, self.tokenizer.end_think_id)

  def _bind(self, params: Params) -> Model:
    vocab_size = self.tokenizer.vocab_size
    if self.scorer is None:
      return bind(self.model, vocab_size, params)
    policy = bind(self.model, vocab_size, params["policy"])
    return ScoredModel(policy, bind(self.scorer, vocab_size, params["prm"]))

  def _gatherer(self) -> Callable[[Params], Params]:
    vocab_size = self.tokenizer.vocab_size
    policy = gatherer(self.model, vocab_size, self.mesh)
    if self.scorer is None:
      return policy
    prm = gatherer(self.scorer, vocab_size, self.mesh)
    return lambda params: {"policy": policy(params["policy"]), "prm": prm(params["prm"])}

  @functools.lru_cache(maxsize=32)  # noqa: B019 (an engine lives as long as its run)
  def _roll_out(self, count: int):
    def shard(params, batch, temperature, verify_inside):
      model = self._bind(params)
      return rollouts_lib.roll_out(
        model,
        model.unstack(),
        batch["prompts"],
        batch["prompt_length"],
        batch["completion"],
        batch["length"],
        self.judge(batch["facts"]),
        jax.random.wrap_key_data(batch["keys"]),
        count,
        temperature,
        verify_inside,
        self.tokenizer.end_id,
        self._verifier,
      )

    return jax.jit(self._on_mesh(shard))

  @functools.lru_cache(maxsize=32)  # noqa: B019
  def _play(
    self,
    config: PlayConfig,
    verify_inside: bool,
    stop_when_found: bool,
    reserve: int,
    keep_trees: int,
  ):
    config.check(self.tokenizer.vocab_size)

    def shard(params, batch, weights):
      model = self._bind(params)
      return play_lib.play(
        model,
        model.unstack(),
        batch["prompts"],
        batch["prompt_length"],
        self.judge(batch["facts"]),
        jax.random.wrap_key_data(batch["keys"]),
        batch["budget"],
        batch["noise"],
        batch["temperature"],
        weights,
        config,
        self._verifier,
        self.tokenizer.end_id,
        self.delimiters,
        verify_inside,
        stop_when_found,
        reserve,
        keep_trees,
      )

    return jax.jit(self._on_mesh(shard))

  @functools.lru_cache(maxsize=32)  # noqa: B019
  def _grow(self, rows: int, group: int):
    def shard(params, batch, temperature, expansion, steps_ahead, verify_inside):
      model = self._bind(params)
      return lanes_lib.grow(
        model,
        model.unstack(),
        batch["prompts"],
        batch["prompt_length"],
        self.judge(batch["facts"]),
        jax.random.wrap_key_data(batch["keys"]),
        batch["budget"],
        batch["count"],
        temperature,
        expansion,
        steps_ahead,
        verify_inside,
        rows,
        group,
        self.max_tokens,
        self.tokenizer.end_id,
        self.delimiters,
        self._verifier,
      )

    return jax.jit(self._on_mesh(shard))

  @functools.lru_cache(maxsize=32)  # noqa: B019
  def _thinker(self, config: TreeConfig, verify_inside: bool, stop_when_found: bool) -> Thinker:
    config.check(self.tokenizer.vocab_size)

    def setting(params, game, weights):
      model = self._bind(params)
      return think_lib.expedition(
        model,
        model.unstack(),
        game,
        weights,
        config,
        self._verifier,
        self.tokenizer.end_id,
        verify_inside,
        stop_when_found,
      )

    def start(params, batch, weights):
      model = self._bind(params)
      return think_lib.start(
        model,
        model.unstack(),
        batch["prompts"],
        batch["prompt_length"],
        self.judge(batch["facts"]),
        batch["keys"],
        batch["number"],
        batch["limit"],
        batch["noise"],
        lambda game: setting(params, game, weights),
        weights,
        config,
        self.max_tokens,
      )

    def advance(params, thoughts, weights, quota):
      return think_lib.advance(setting(params, thoughts.game, weights), thoughts, quota)

    def swap(params, both, weights):
      thoughts, fresh = both
      new, out = think_lib.swap(setting(params, thoughts.game, weights), thoughts, fresh)
      insight = think_lib.conclude(out, config, self._verifier, self.tokenizer.end_id)
      return new, insight, out.frontier.tree

    on_mesh, records = self._on_mesh(swap), self._on_mesh(lambda _, tree: compact(tree))
    return Thinker(
      start=jax.jit(self._on_mesh(start)),
      advance=jax.jit(self._on_mesh(advance), donate_argnums=1),
      swap=jax.jit(
        lambda params, thoughts, fresh, weights: on_mesh(params, (thoughts, fresh), weights),
        donate_argnums=1,
      ),
      record=jax.jit(lambda tree: records((), tree)),
    )

  def _decode_shard(self, params, batch, temperature, verify_inside):
    model = self._bind(params)
    layers, lengths = model.unstack(), batch["prompt_length"]
    judge = self.judge(batch["facts"])
    game = game_lib.start(model, layers, batch["prompts"], lengths, judge, self.max_tokens)
    game, finished, steps = play_lib.decode(
      model,
      layers,
      game,
      lengths > 0,
      jax.random.wrap_key_data(batch["keys"]),
      temperature,
      verify_inside,
      self.tokenizer.end_id,
      self._verifier,
    )
    return {
      "completion": game.completion,
      "length": game.length,
      "finished": finished,
      "right": self._verifier.right(game.judge),
      "values": game.values,
      "positions": jnp.broadcast_to(steps, finished.shape),
    }

  def _foresee_shard(self, params, batch):
    model = self._bind(params)
    game = game_lib.start(
      model,
      model.unstack(),
      batch["prompts"],
      batch["prompt_length"],
      self.judge(batch["facts"]),
      max_tokens=0,
    )
    return game.value, game.logits

  def _on_mesh(self, function):
    """Runs function(params, batch, *scalars) per shard of the batch, without communication."""
    axes = RULES["batch"]
    batch_spec = PartitionSpec(axes)

    def wrapped(params, batch, *scalars):
      return jax.shard_map(
        function,
        mesh=self.mesh,
        in_specs=(PartitionSpec(), batch_spec, *(PartitionSpec() for _ in scalars)),
        out_specs=batch_spec,
        axis_names=set(axes),
        check_vma=False,
      )(params, batch, *scalars)

    return wrapped
