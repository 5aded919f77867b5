"""The train state and the pure, sharded train step."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxzero.errors import UserError
from jaxzero.learn import losses
from jaxzero.learn.batch import Batch
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, bind, init_params, param_shardings
from jaxzero.parallel.sharding import replicated


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
      batch: B rows; B must divide by `micro_batches`.
      reference: parameters for the KL term, where its weight is not 0.
    """
    divisors = losses.weights(batch)

    def loss_of(params: Params, part: Batch):
      output = self._forward(params, part)
      anchor = self._forward(reference, part).logits if self.loss.kl_weight else None
      return losses.total_loss(output, anchor, part, divisors, self.loss)

    iterate = state.iterate if self.average_steps else state.params
    gradient = jax.grad(loss_of, has_aux=True)
    if self.micro_batches == 1:
      grads, metrics = gradient(iterate, batch)
    else:
      parts = jax.tree.map(self._split, batch)
      like = jax.eval_shape(gradient, iterate, jax.tree.map(lambda x: x[0], parts))
      zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)

      def add(total, part):
        return jax.tree.map(jnp.add, total, gradient(iterate, part)), None

      (grads, metrics), _ = jax.lax.scan(add, zeros, parts)
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

  def _average(self, average: Params, params: Params) -> Params:
    if not self.average_steps:
      return params
    return optax.incremental_update(params, average, 1.0 / self.average_steps)

  def _split(self, x: jax.Array) -> jax.Array:
    if x.shape[0] % self.micro_batches:
      raise UserError(
        f"batch_size={x.shape[0]} does not divide into micro_batches={self.micro_batches}."
      )
    # Row i goes to part i % micro_batches, so that every part stays spread over all devices.
    return x.reshape(-1, self.micro_batches, *x.shape[1:]).swapaxes(0, 1)

  def _forward(self, params: Params | None, batch: Batch):
    assert params is not None
    B, T = batch.tokens.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return bind(self.model, self.vocab_size, params)(batch.tokens, positions, mask)
