"""A student 4 times smaller than the quickstart's model, about 160 K parameters.

`jaxzero distill RUN --student configs/micro.py`, or alone `jaxzero train configs/micro.py`.
"""

from jaxzero.learn.supervised import SupervisedConfig
from jaxzero.learn.train import OptimizerConfig
from jaxzero.models.config import ModelConfig
from jaxzero.recipes.experiment import Experiment, ImproveConfig

config = Experiment(
  model=ModelConfig(
    num_layers=3,
    embed_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_dim=184,
    tie_embeddings=True,
  ),
  supervised=SupervisedConfig(
    steps=2000,
    patience=8,
    evaluate_every=100,
    optimizer=OptimizerConfig(learning_rate=4e-3),
  ),
  improve=ImproveConfig(optimizer=OptimizerConfig(learning_rate=2e-3, average_steps=60)),
)
