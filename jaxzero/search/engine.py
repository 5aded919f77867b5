"""The door of the search room: problems in, answers and their cost out, whatever the strategy.

An `Engine` holds a task, a tokenizer, a model's shape and a mesh, and the compiled functions.
`gather` makes parameters whole once for many calls. Search runs on them inside `shard_map` over
data and fsdp, where nothing is communicated; a split over tensor adds up two activations a layer.
Every episode has a key of its own, so results do not depend on the number of devices or on how
problems are batched.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxzero.errors import UserError
from jaxzero.models.config import ModelConfig
from jaxzero.models.scored import Model, ScoredModel
from jaxzero.models.transformer import Params, bind, gatherer
from jaxzero.parallel.hosts import fetch
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.sharding import RULES, shard_batch
from jaxzero.search import game as game_lib
from jaxzero.search import lanes as lanes_lib
from jaxzero.search import play as play_lib
from jaxzero.search import rollouts as rollouts_lib
from jaxzero.search import think as think_lib
from jaxzero.search.config import PATH_ORDERS, Lanes, TreeConfig
from jaxzero.search.expand import Weights
from jaxzero.search.play import PlayConfig
from jaxzero.search.tree import compact
from jaxzero.tasks.base import Problem, Task
from jaxzero.tasks.transcript import encode_prompt
from jaxzero.tokenizers import Tokenizer


class Engine:
  """Compiled thinking for one model shape, task and mesh.

  Args:
    scorer: the shape of a process reward model that reads every token beside the policy, and whose
      values take the place of the value head's. Parameters are then {"policy": ..., "prm": ...}.
  """

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

  def thinker(self, config: TreeConfig, verify_inside: bool) -> Thinker:
    """The compiled functions of one tree a problem; UserError for an order by values."""
    if config.order not in PATH_ORDERS:
      raise UserError(
        f"order={config.order} searches token by token; one tree a problem takes one of "
        f"{', '.join(PATH_ORDERS)}."
      )
    return self._thinker(config.static(), verify_inside)

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
  def _thinker(self, config: TreeConfig, verify_inside: bool) -> Thinker:
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


@dataclasses.dataclass(frozen=True)
class Thinker:
  """Compiled: start(params, batch, weights), advance(params, thoughts, weights, quota),
  swap(params, thoughts, fresh, weights) and record(tree)."""

  start: Any
  advance: Any
  swap: Any
  record: Any


def make_weights(config: TreeConfig, temperature: float) -> Weights:
  return Weights(**{k: np.float32(v) for k, v in config.weights(temperature).items()})
