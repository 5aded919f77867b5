"""The train steps of a stage: where they stand, what stops them, and how they go on from there.

A batch is a pure function of (seed, step), and every host makes its own rows of it. So a stage
that goes on from a checkpoint, also on other hosts and devices, learns the same in the same order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import Preempted, UserError
from jaxzero.learn.batch import Batch
from jaxzero.learn.guard import LossGuard, batch_hash, combine, to_hex
from jaxzero.learn.train import Trainer, TrainState
from jaxzero.models.transformer import Params
from jaxzero.parallel import preemption
from jaxzero.progress import Bar
from jaxzero.recipes.run import Run


def train_flops(run: Run, batch_size: int, length: int = 0, with_policy: bool = True) -> float:
  """FLOPs of one train step: forward and backward (3x) over every padded position.

  length: positions of a row; 0: the whole context.
  with_policy: next-token logits are computed, too.
  """
  length = length or run.experiment.context
  vocab_size = run.tokenizer.vocab_size if with_policy else 0
  per_token = run.experiment.model.flops_per_token(vocab_size, length)
  return 3.0 * batch_size * length * per_token


class Steps:
  """A stage's state, its checkpoints, and the steps between them.

  Args:
    name: the stage's name: its checkpoint folder.
    ledger: what the steps are charged to.
    start: the state of step 0; given up for the newest good checkpoint's, where there is one.
  """

  def __init__(
    self,
    run: Run,
    name: str,
    ledger: str,
    trainer: Trainer,
    start: TrainState,
    batch_size: int,
    keep_best: bool = False,
  ):
    self.run, self.name, self.ledger, self.trainer = run, name, ledger, trainer
    self.batch_size = batch_size
    self.checkpoints = Checkpoints(run.folder / "checkpoints" / name, keep_best=keep_best)
    self.state, self.meta = self._restored(start)
    self.step: int = self.meta.get("step", 0)
    self.guard = LossGuard(run.experiment.spike_factor, self.meta.get("losses", []))
    # Of this host's rows since `advance` last told; what was before is the first part's to tell.
    self._hash: int = self.meta.get("batch_hash", 0) if run.hosts.part == 0 else 0

  def advance(
    self,
    until: int,
    batch: Callable[[int, np.ndarray], Batch],
    reference: Params | None = None,
    progress: Bar | None = None,
    **meta: Any,
  ) -> dict[str, Any]:
    """Takes the steps up to step `until`.

    Args:
      batch: batch(step, rows) makes these rows of a step's batch, on the host.
      reference: parameters for the KL term.
      meta: what a checkpoint on the way has to remember for the stage.

    Returns:
      the last step's metrics, and `batch_hash` of all rows since this was last told.

    Raises:
      UserError: a loss that is no number or far off; nothing is saved.
      Preempted: all hosts stopped between two steps, and what was done is saved.
    """
    run, pending = self.run, None
    following = self._make(batch)
    while self.step < until:
      begin = time.monotonic()
      placed, hashed = following
      with run.goodput.phase("learn"), run.profiler.step(self.step, self.state):
        self.state, metrics = self.trainer.train_step(self.state, placed, reference)
        self.step += 1
        if self.step < until:  # while the devices are at work
          following = self._make(batch)
        if pending:
          self._check(*pending)
      pending = (self.step, hashed, metrics)
      rows, length = placed.tokens.shape
      flops = train_flops(run, rows, length, bool(self.trainer.loss.policy_weight))
      run.charge(self.ledger, flops, time.monotonic() - begin, float(rows * length))
      run.goodput.beat()
      if progress is not None:
        progress.advance(1)
      if preemption.reached() and self.step < until:
        self._check(*pending)
        self.save(**meta)
        raise Preempted(f"step {self.step} of {self.name}")
    last = self._check(*pending) if pending else {}
    everyones, self._hash = self._everyones_hash(), 0
    return {**last, "batch_hash": to_hex(everyones)}

  def save(self, accuracy: float = -1.0, **meta: Any) -> None:
    """A checkpoint of this step; `meta` is what the stage has to remember, as JSON."""
    run = self.run
    with run.goodput.phase("checkpoint"):
      mine = {
        "step": self.step,
        "losses": self.guard.to_list(),
        "batch_hash": self._everyones_hash(),
      }
      everything = {**mine, **meta, **run.commit()}
      self.checkpoints.save(
        self.step,
        self.state.params,
        _moved(self.state),
        {"seed": run.experiment.seed, "step": self.step},
        everything,
        accuracy,
      )
    run.goodput.commit()

  def _check(self, step: int, hashed: int, metrics: dict[str, jax.Array]) -> dict[str, float]:
    """A step's metrics as numbers; waits for them. UserError where its loss will not do."""
    self._hash = combine([self._hash, hashed])
    numbers = {name: float(value) for name, value in jax.device_get(metrics).items()}
    self.guard.check(
      step,
      numbers["loss"],
      numbers["grad_norm"],
      lambda: combine([self.run.hosts.total(hashed)]),
      self._last_good,
    )
    return numbers

  def _last_good(self) -> str:
    step = self.checkpoints.latest
    return "none yet" if step is None else str(self.checkpoints.folder / str(step))

  def _everyones_hash(self) -> int:
    return combine([self.run.hosts.total(self._hash)])

  def _make(self, batch: Callable[[int, np.ndarray], Batch]) -> tuple[Batch, int]:
    rows = self.run.hosts.of(self.batch_size)
    arrays = batch(self.step, rows)
    return self.run.hosts.put(arrays), batch_hash(vars(arrays), rows)

  def _restored(self, start: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The newest good checkpoint's state and meta, with the run's books rewound to it."""
    step = self.checkpoints.latest_good()
    if step is None:
      return start, {}
    shardings = self.trainer.shardings
    abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), start, shardings
    )
    loaded = self.checkpoints.restore(step, abstract.params, _moved(abstract))
    if "step" not in loaded["meta"]:
      raise UserError(
        f"{self.checkpoints.folder / str(step)} was written by an older version; start a new run."
      )
    self.run.rewind(loaded["meta"])
    moved = loaded["optimizer"]
    optimizer, iterate = moved if start.iterate is not None else (moved, None)
    state = TrainState(
      step=jax.device_put(np.int32(loaded["data"]["step"]), shardings.step),
      params=loaded["params"],
      optimizer=optimizer,
      iterate=iterate,
    )
    return state, loaded["meta"]


def _moved(state: TrainState) -> Any:
  """What a checkpoint keeps beside the model to go on from it."""
  return state.optimizer if state.iterate is None else [state.optimizer, state.iterate]
