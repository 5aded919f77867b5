"""A student 4 times smaller than the quickstart's model, about 160 K parameters.

`jaxzero distill RUN --student configs/micro.py`, or alone `jaxzero train configs/micro.py`.
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
    embed_dim=64,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    ffn_dim=184,
    tie_embeddings=True,
  ),
  supervised=dataclasses.replace(_base.supervised, optimizer=OptimizerConfig(learning_rate=4e-3)),
)
