"""Worker of test_launch: a few supervised steps over every device there is, losses as JSON."""

from __future__ import annotations

import json
import sys

import jax

from jaxzero.learn.losses import LossConfig
from jaxzero.learn.supervised import Examples
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.config import ModelConfig
from jaxzero.parallel.hosts import barrier, initialize_hosts, is_primary
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch

MODEL = ModelConfig(
  num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, ffn_dim=64
)
VOCAB_SIZE = 24


def losses(steps: int) -> list[float]:
  """Losses before each of `steps` updates, all on the same 16 rows; data x 2-way fsdp."""
  mesh = make_mesh(MeshConfig(fsdp=2))
  optimizer = OptimizerConfig(warmup_steps=1)
  trainer = Trainer(MODEL, VOCAB_SIZE, optimizer, LossConfig(), mesh, steps=steps)
  texts = [([1, 2, 3 + i], [4 + (i * j) % 20 for j in range(8)]) for i in range(16)]
  examples = Examples(texts, 16, 1, seed=0)
  state = trainer.init(jax.random.key(0))
  values = []
  for step in range(steps):
    state, metrics = trainer.train_step(state, shard_batch(mesh, examples.batch(step, len(texts))))
    values.append(float(metrics["loss"]))
  return values


if __name__ == "__main__":
  initialize_hosts()
  result = {
    "processes": jax.process_count(),
    "devices": jax.device_count(),
    "losses": losses(int(sys.argv[1])),
  }
  barrier("trained", timeout_s=20)
  if is_primary():
    with open(sys.argv[2], "w") as file:
      json.dump(result, file)
