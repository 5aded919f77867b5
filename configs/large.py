"""About 1 B parameters, for a pod slice of 32 devices: `jaxzero train configs/large.py`."""

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
  task=TaskConfig(numbers=6, max_number=12, max_target=99, worked_examples=20_000),
  model=ModelConfig(
    num_layers=22,
    embed_dim=2048,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    ffn_dim=5632,
    qk_norm=True,
    dtype="bfloat16",
    scan_layers=True,
    remat="full",
  ),
  mesh=MeshConfig(fsdp=8, tensor=4),
  max_prompt=32,
  self_play=dataclasses.replace(
    _base.self_play,
    play=PlayConfig(tree=TreeConfig(num_simulations=640), max_tokens=80),
    episodes_per_round=16_384,
    batch_size=4096,
  ),
  improve=dataclasses.replace(_base.improve, rounds=1000, batch_size=4096, micro_batches=8),
)
