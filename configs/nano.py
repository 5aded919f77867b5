"""A student 16 times smaller than the quickstart's model, about 40 K parameters.

`jaxzero distill RUN --student configs/nano.py`, or alone `jaxzero train configs/nano.py`.
"""

from jaxzero.learn.supervised import SupervisedConfig
from jaxzero.learn.train import OptimizerConfig
from jaxzero.models.config import ModelConfig
from jaxzero.recipes.experiment import Experiment, ImproveConfig

config = Experiment(
  model=ModelConfig(
    num_layers=3,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=72,
    tie_embeddings=True,
  ),
  supervised=SupervisedConfig(
    steps=4000,
    patience=12,
    evaluate_every=200,
    optimizer=OptimizerConfig(learning_rate=6e-3),
  ),
  improve=ImproveConfig(optimizer=OptimizerConfig(learning_rate=3e-3, average_steps=60)),
)
