"""About 7 B parameters, the layers of Llama 3 8B under a small vocabulary, for 32 devices such as
a v5p-64 slice: `jaxzero train configs/xlarge.py`.

Bytes a device: 3.5 GB of state (parameters, their average and two moments in float32) and 4.7 GB
while a step runs; while searching 3.5 GB of gathered bfloat16 weights and 3.3 GB of KV cache.
"""

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
    num_layers=32,
    embed_dim=4096,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    ffn_dim=14_336,
    rope_theta=500_000.0,
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
    batch_size=1024,
  ),
  improve=dataclasses.replace(_base.improve, rounds=1000, batch_size=4096, micro_batches=16),
)
