"""An experiment: every room's config, composed. Its defaults are the quickstart."""

from __future__ import annotations

import dataclasses

from jaxzero.errors import UserError
from jaxzero.evals.config import EvalConfig
from jaxzero.learn.guard import check_spike_factor
from jaxzero.learn.losses import LossConfig
from jaxzero.learn.supervised import SupervisedConfig
from jaxzero.learn.train import OptimizerConfig
from jaxzero.models.config import ModelConfig
from jaxzero.parallel.mesh import MeshConfig
from jaxzero.search.play import PlayConfig
from jaxzero.selfplay.run import SelfPlayConfig
from jaxzero.tasks.base import TaskConfig


@dataclasses.dataclass(frozen=True)
class ImproveConfig:
  """Rounds of self-play and learning from it."""

  rounds: int = 24
  replay_rounds: int = 4
  """Learning draws from so many of the newest rounds."""
  steps_per_round: int = 64
  batch_size: int = 32
  supervised_share: float = 0.125
  """Share of each batch that is worked examples."""
  solution_share: float = 0.7
  """Share of each batch that is solutions of lost games; the rest are games as played."""
  soft_targets: bool = False
  """Learn the trees' improved policies at a solution's moves, not the moves alone."""
  evaluate_every: int = 4
  """Rounds between validations."""
  micro_batches: int = 1
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1.5e-3, average_steps=60)
  loss: LossConfig = LossConfig()

  def check(self) -> None:
    for name in (
      "rounds",
      "replay_rounds",
      "steps_per_round",
      "batch_size",
      "evaluate_every",
      "micro_batches",
    ):
      if getattr(self, name) < 1:
        raise UserError(f"--improve.{name.replace('_', '-')}={getattr(self, name)} must be >= 1.")
    if self.batch_size % self.micro_batches:
      raise UserError(
        f"--improve.batch-size={self.batch_size} does not divide into "
        f"micro-batches={self.micro_batches}."
      )
    self.optimizer.check()
    if not self.supervised_share >= 0 or not self.solution_share >= 0:
      raise UserError("shares of the batch must not be negative.")
    if not self.supervised_share + self.solution_share <= 0.9:
      raise UserError(
        f"supervised_share={self.supervised_share} and solution_share={self.solution_share} leave "
        "under a tenth of the batch to games as played; lower them."
      )


@dataclasses.dataclass(frozen=True)
class Experiment:
  """Everything a run depends on."""

  seed: int = 0
  task: TaskConfig = TaskConfig()
  model: ModelConfig = ModelConfig()
  mesh: MeshConfig = MeshConfig()
  max_prompt: int = 16
  """Prompt positions; with `self_play.play.max_tokens` the model's context."""
  supervised: SupervisedConfig = SupervisedConfig()
  self_play: SelfPlayConfig = SelfPlayConfig()
  improve: ImproveConfig = ImproveConfig()
  evaluation: EvalConfig = EvalConfig()
  spike_factor: float = 8.0
  """A training loss over so many times the median of the last 50 stops the run; 0: only one that is
  no number does."""

  def check(self) -> None:
    """Raises UserError for settings that cannot run, before anything is written."""
    self.model.check()
    self.supervised.check()
    self.self_play.check()
    self.self_play.play.check(vocab_size=None)
    self.improve.check()
    self.evaluation.check()
    check_spike_factor(self.spike_factor)
    if not 0 <= self.seed <= 10**8:
      raise UserError(f"seed={self.seed} must lie in 0..{10**8}.")
    if self.max_prompt < 4:
      raise UserError(f"max_prompt={self.max_prompt} leaves no room for a problem; use 16 or more.")

  @property
  def test_play(self) -> PlayConfig:
    """How problems are thought about outside of self-play."""
    return dataclasses.replace(self.self_play.play, tree=self.evaluation.tree)

  @property
  def context(self) -> int:
    return self.max_prompt + self.self_play.play.max_tokens
