"""A student 16 times smaller than the quickstart's model, about 40 K parameters.

`jaxzero distill RUN --student configs/nano.py`, or alone `jaxzero train configs/nano.py`.
"""

import dataclasses

from jaxzero.learn.train import OptimizerConfig
from jaxzero.models.config import ModelConfig
from jaxzero.recipes.experiment import Experiment

_base = Experiment()

config = dataclasses.replace(
  _base,
  model=ModelConfig(
    num_layers=3,
    embed_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    ffn_dim=72,
    tie_embeddings=True,
  ),
  supervised=dataclasses.replace(_base.supervised, optimizer=OptimizerConfig(learning_rate=6e-3)),
)
