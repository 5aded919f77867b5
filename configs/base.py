"""About 110 M parameters, for a host of 8 accelerators: `jaxzero train configs/base.py`."""

import dataclasses

from jaxzero.models.config import ModelConfig
from jaxzero.parallel.mesh import MeshConfig
from jaxzero.recipes.experiment import Experiment
from jaxzero.search.config import TreeConfig
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import TaskConfig

_base = Experiment()

config = dataclasses.replace(
  _base,
  task=TaskConfig(numbers=5, max_number=12, max_target=99, worked_examples=50_000),
  model=ModelConfig(
    num_layers=14,
    embed_dim=768,
    num_heads=12,
    num_kv_heads=4,
    head_dim=64,
    ffn_dim=2560,
    qk_norm=True,
    dtype="bfloat16",
  ),
  mesh=MeshConfig(fsdp=8),
  max_prompt=24,
  self_play=dataclasses.replace(
    _base.self_play,
    play=PlayConfig(tree=TreeConfig(num_simulations=512), max_tokens=64),
    episodes_per_round=16_384,
    batch_size=4096,
  ),
  improve=dataclasses.replace(_base.improve, rounds=500, batch_size=2048, micro_batches=2),
)
