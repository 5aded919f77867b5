"""The train state and the pure, sharded train step.

The gradients run in `shard_map` over data and fsdp, so what is communicated there is written down;
the tensor axis is the compiler's. The plan, asserted on compiled programs by the tests:

| axis | for every layer and micro-batch | once a step |
|---|---|---|
| data | - | gradients summed |
| fsdp | matrices gathered, in the compute type; gradients summed, scattered | norms' summed |
| tensor | two activations summed forward, two backward | - |

With `scan_layers` one layer is whole at a time; matrices are gathered again for the backward pass.
Beside these only scalars: the losses, their divisors, the gradient's norm.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxzero.errors import UserError
from jaxzero.learn import losses
from jaxzero.learn.batch import Batch
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, bind, init_params, param_shardings
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.sharding import RULES, only, replicated


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with linear warmup, cosine decay to a tenth, and clipping by global norm."""

  learning_rate: float = 2e-3
  warmup_steps: int = 20
  weight_decay: float = 0.1
  beta2: float = 0.98
  max_grad_norm: float = 1.0
  average_steps: int = 0
  """Horizon of an exponential moving average of the parameters, which then is the model (Polyak and
  Juditsky 1992): it acts as if the learning rate had already decayed. 0: none."""

  def check(self) -> None:
    """Raises UserError for an optimizer that cannot learn."""
    if not 0.0 < self.learning_rate < 10.0 or self.average_steps < 0 or self.warmup_steps < 0:
      raise UserError(
        f"learning_rate={self.learning_rate} must lie between 0 and 10, "
        f"average_steps={self.average_steps} and warmup_steps={self.warmup_steps} at 0 or above."
      )

  def make(self, steps: int) -> optax.GradientTransformation:
    """The optimizer of a training of so many steps; beyond them the rate stays at its tenth."""
    schedule = optax.warmup_cosine_decay_schedule(
      init_value=0.0,
      peak_value=self.learning_rate,
      warmup_steps=min(self.warmup_steps, steps // 2),
      decay_steps=steps,
      end_value=0.1 * self.learning_rate,
    )
    return optax.chain(
      optax.clip_by_global_norm(self.max_grad_norm),
      optax.adamw(schedule, b1=0.9, b2=self.beta2, weight_decay=self.weight_decay, mask=_decayed),
    )


def _decayed(params: Params) -> Params:
  """True for the matrices; norms, the value head and its bias are not decayed."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: not any(word in path[-1].key for word in ("norm", "value")), params
  )


@chex.dataclass(frozen=True)
class TrainState:
  step: jax.Array  # scalar int32
  params: Params  # the model
  optimizer: Any
  iterate: Params | None = None  # what the steps move, where the model is its average


class Trainer:
  """Compiled functions for one model, optimizer and mesh."""

  def __init__(
    self,
    model: ModelConfig,
    vocab_size: int,
    optimizer: OptimizerConfig,
    loss: losses.LossConfig,
    mesh: Mesh,
    steps: int,
    micro_batches: int = 1,
  ):
    self.model, self.vocab_size, self.mesh = model, vocab_size, mesh
    self.loss, self.micro_batches = loss, micro_batches
    self.optimizer = optimizer.make(steps)
    self.average_steps = optimizer.average_steps
    self.shardings = self._state_shardings()
    self.init = jax.jit(self._init, out_shardings=self.shardings)
    self.fresh_optimizer = jax.jit(self._fresh_optimizer, out_shardings=self.shardings)
    self.train_step = jax.jit(
      self._train_step, donate_argnums=0, out_shardings=(self.shardings, replicated(mesh))
    )

  def _state_shardings(self) -> TrainState:
    """Moments are sharded like the parameters they belong to; scalars are replicated."""
    params = param_shardings(self.model, self.vocab_size, self.mesh)
    everywhere = replicated(self.mesh)
    abstract = jax.eval_shape(self._init, jax.random.key(0))
    optimizer = optax.tree_map_params(
      self.optimizer,
      lambda _, sharding: sharding,
      abstract.optimizer,
      params,
      transform_non_params=lambda _: everywhere,
    )
    iterate = params if self.average_steps else None
    return TrainState(step=everywhere, params=params, optimizer=optimizer, iterate=iterate)

  def _init(self, key: jax.Array) -> TrainState:
    """Random parameters and a fresh optimizer; the key is consumed."""
    return self._fresh_optimizer(init_params(self.model, self.vocab_size, key))

  def _fresh_optimizer(self, params: Params) -> TrainState:
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      optimizer=self.optimizer.init(params),
      iterate=params if self.average_steps else None,
    )

  def _train_step(
    self, state: TrainState, batch: Batch, reference: Params | None = None
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update; the state is donated. Metrics are float32 scalars.

    Args:
      batch: B rows; B must divide by data x fsdp x `micro_batches`, or UserError.
      reference: parameters for the KL term, where its weight is not 0.
    """
    iterate = state.params if state.iterate is None else state.iterate
    grads, metrics = self.gradients(iterate, batch, reference)
    updates, optimizer = self.optimizer.update(grads, state.optimizer, iterate)
    metrics["grad_norm"] = optax.tree.norm(grads)
    moved = optax.apply_updates(iterate, updates)
    new_state = TrainState(
      step=state.step + 1,
      params=self._average(state.params, moved),
      optimizer=optimizer,
      iterate=moved if self.average_steps else None,
    )
    return new_state, metrics

  def gradients(
    self, params: Params, batch: Batch, reference: Params | None = None
  ) -> tuple[Params, dict[str, jax.Array]]:
    """The loss's gradients, sharded like the parameters, and the metrics; see `_train_step`."""
    self._check_rows(len(batch.tokens))
    axes = RULES["batch"]
    rows, whole = PartitionSpec(axes), PartitionSpec()
    sharded = jax.tree.map(lambda s: only(axes, s.spec), self.shardings.params)

    def of_shard(params, batch, reference, divisors):
      grads, metrics = self._local_gradients(params, batch, reference, divisors)
      # Gradients of what was gathered over fsdp come back summed and scattered over it.
      grads = jax.tree.map(lambda g, s: self._sum(g, set(axes) - set(s)), grads, sharded)
      return grads, self._sum(metrics, set(axes))

    return jax.shard_map(
      of_shard,
      mesh=self.mesh,
      in_specs=(sharded, rows, None if reference is None else sharded, whole),
      out_specs=(sharded, whole),
      axis_names=set(axes),
      check_vma=False,
    )(params, batch, reference, losses.weights(batch))

  def _check_rows(self, batch_size: int) -> None:
    shards = batch_shards(self.mesh)
    if batch_size % (shards * self.micro_batches):
      raise UserError(
        f"batch_size={batch_size} does not divide into micro_batches={self.micro_batches} on "
        f"data x fsdp = {shards} devices; use a multiple of {shards * self.micro_batches}."
      )

  def _sum(self, x: Any, axes: set[str]) -> Any:
    split = tuple(axis for axis in sorted(axes) if self.mesh.shape[axis] > 1)
    return jax.lax.psum(x, split) if split else x

  def _local_gradients(self, params, batch, reference, divisors):
    """Sums over this shard's rows, micro-batch by micro-batch."""

    def loss_of(params: Params, part: Batch):
      output = self._forward(params, part)
      anchor = self._forward(reference, part).logits if self.loss.kl_weight else None
      return losses.total_loss(output, anchor, part, divisors, self.loss)

    gradient = jax.grad(loss_of, has_aux=True)
    if self.micro_batches == 1:
      return gradient(params, batch)
    parts = jax.tree.map(lambda x: x.reshape(self.micro_batches, -1, *x.shape[1:]), batch)
    like = jax.eval_shape(gradient, params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

    def add(total, part):
      return jax.tree.map(jnp.add, total, gradient(params, part)), None

    return jax.lax.scan(add, zeros, parts)[0]

  def _average(self, average: Params, params: Params) -> Params:
    if not self.average_steps:
      return params
    return optax.incremental_update(params, average, 1.0 / self.average_steps)

  def _forward(self, params: Params | None, batch: Batch):
    assert params is not None
    B, T = batch.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return bind(self.model, self.vocab_size, params)(batch.tokens, positions, mask)
