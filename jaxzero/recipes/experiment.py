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

RULES = ("search", "expert_iteration", "grpo")


@dataclasses.dataclass(frozen=True)
class ImproveConfig:
  """Rounds of self-play and learning from it."""

  rule: str = "search"
  """What is played and learned: `search` (solutions that tree searches found), `expert_iteration`
  (right samples), `grpo` (samples by their advantage)."""
  rounds: int = 24
  replay_rounds: int = 4
  """search, expert_iteration: learning draws from so many of the newest rounds."""
  steps_per_round: int = 64
  batch_size: int = 32
  supervised_share: float = 0.125
  """Share of each batch that is worked examples."""
  solution_share: float = 0.7
  """search: share of each batch that is solutions of lost games; the rest are games as played."""
  soft_targets: bool = False
  """search: learn the trees' improved policies at a solution's moves, not the moves alone."""
  keep: int = 4
  """expert_iteration: right samples of a problem that are learned, at most."""
  restart: bool = False
  """expert_iteration: every round learns from the first parameters again, as ReST-EM does; else it
  goes on, which needs fewer steps a round."""
  scale_by_std: bool = False
  """grpo: divide a group's advantages by their standard deviation."""
  evaluate_every: int = 4
  """Rounds between validations."""
  micro_batches: int = 1
  optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1.5e-3, average_steps=60)
  loss: LossConfig = LossConfig()

  def check(self) -> None:
    if self.rule not in RULES:
      raise UserError(f"--improve.rule={self.rule} is unknown; use one of {', '.join(RULES)}.")
    if self.restart and self.rule != "expert_iteration":
      raise UserError(f"--improve.restart is made for expert_iteration, not for {self.rule}.")
    for name in (
      "rounds",
      "replay_rounds",
      "steps_per_round",
      "batch_size",
      "evaluate_every",
      "micro_batches",
      "keep",
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
    self._check_rule()
    check_spike_factor(self.spike_factor)
    if not 0 <= self.seed <= 10**8:
      raise UserError(f"seed={self.seed} must lie in 0..{10**8}.")
    if self.max_prompt < 4:
      raise UserError(f"max_prompt={self.max_prompt} leaves no room for a problem; use 16 or more.")

  def _check_rule(self) -> None:
    rule, played = self.improve.rule, self.self_play
    if rule == "grpo" and (played.samples < 2 or played.temperature != 1.0):
      raise UserError(
        f"rule=grpo compares samples of the policy that it learns: samples={played.samples} must "
        f"be 2 or more, temperature={played.temperature} must be 1."
      )
    if rule == "grpo" and self.improve.optimizer.average_steps:
      raise UserError(
        "rule=grpo learns from samples of the parameters that it changes, not of their average "
        f"over {self.improve.optimizer.average_steps} steps; set "
        "--improve.optimizer.average-steps 0."
      )
    if played.curriculum and (rule != "search" or not self.improve.loss.value_weight):
      raise UserError(
        f"a curriculum asks the value head, which rule={rule} with value_weight="
        f"{self.improve.loss.value_weight} never trains; leave --self-play.curriculum off."
      )

  @property
  def test_play(self) -> PlayConfig:
    """How problems are thought about outside of self-play."""
    return dataclasses.replace(self.self_play.play, tree=self.evaluation.tree)

  @property
  def context(self) -> int:
    return self.max_prompt + self.self_play.play.max_tokens
