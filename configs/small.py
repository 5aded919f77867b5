"""About 13 M parameters, for one accelerator: `jaxzero train configs/small.py`."""

import dataclasses

from jaxzero.models.config import ModelConfig
from jaxzero.recipes.experiment import Experiment
from jaxzero.search.config import TreeConfig
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import TaskConfig

_base = Experiment()

config = dataclasses.replace(
  _base,
  task=TaskConfig(numbers=4, max_number=12, max_target=99, worked_examples=10_000),
  model=ModelConfig(
    num_layers=8,
    embed_dim=384,
    num_heads=6,
    num_kv_heads=2,
    head_dim=64,
    ffn_dim=1024,
    dtype="bfloat16",
  ),
  max_prompt=20,
  self_play=dataclasses.replace(
    _base.self_play,
    play=PlayConfig(tree=TreeConfig(num_simulations=384), max_tokens=48),
    episodes_per_round=4096,
    batch_size=1024,
  ),
  improve=dataclasses.replace(_base.improve, rounds=200, batch_size=512),
)
