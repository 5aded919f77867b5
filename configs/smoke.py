"""Every stage once, small: `jaxzero train configs/smoke.py`. Under 2 minutes on 2 cores."""

from jaxzero.evals.config import EvalConfig
from jaxzero.learn.supervised import SupervisedConfig
from jaxzero.models.config import ModelConfig
from jaxzero.recipes.experiment import Experiment, ImproveConfig
from jaxzero.search.config import TreeConfig
from jaxzero.search.play import PlayConfig
from jaxzero.selfplay.run import SelfPlayConfig

config = Experiment(
  model=ModelConfig(num_layers=2, embed_dim=64, num_heads=2, num_kv_heads=1, ffn_dim=192),
  supervised=SupervisedConfig(steps=60, evaluate_every=20, batch_size=32),
  self_play=SelfPlayConfig(
    play=PlayConfig(
      tree=TreeConfig(num_simulations=48, num_candidates=8),
      max_searches=1,
      max_tokens=30,
    ),
    episodes_per_round=64,
    batch_size=64,
  ),
  improve=ImproveConfig(rounds=3, steps_per_round=2, batch_size=32, evaluate_every=2),
  evaluation=EvalConfig(problems=64, validation_problems=32, batch_size=64, budgets=(1, 4)),
)
