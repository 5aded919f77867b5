"""What a train step and a search communicate and cost per device, read off the compiled programs.

`python benchmarks/sharding.py` prints tables for every split of 8 fake CPU devices into
data x fsdp x tensor, and for 1 to 8 devices with the work per device fixed.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from typing import Any

import jax
import numpy as np

from jaxzero import tasks
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.losses import LossConfig
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import init_params, param_shardings
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine, make_weights
from jaxzero.tasks.base import TaskConfig
from jaxzero.tokenizers import Tokenizer

MODEL = ModelConfig(
  num_layers=4,
  embed_dim=256,
  num_heads=8,
  num_kv_heads=8,
  head_dim=32,
  ffn_dim=768,
  scan_layers=True,
)
LENGTH, SIMULATIONS = 46, 32
PROMPT = 16
Split = tuple[int, int, int]
SPLITS: list[Split] = [
  (data, fsdp, 8 // data // fsdp)
  for data in (8, 4, 2, 1)
  for fsdp in (1, 2, 4, 8)
  if data * fsdp <= 8
]


class Bench:
  """Compiles one model's programs for any split and number of rows."""

  def __init__(self) -> None:
    self.task = tasks.make(TaskConfig())
    self.problems = self.task.problems("train", 0, 64)
    self.tokenizer = Tokenizer.train([problem.prompt for problem in self.problems])
    self.vocab_size = self.tokenizer.vocab_size

  def mesh(self, split: Split) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(*split), jax.devices()[: int(np.prod(split))])

  def step(self, model: ModelConfig, split: Split, rows: int) -> Any:
    """The compiled train step."""
    trainer = Trainer(
      model, self.vocab_size, OptimizerConfig(), LossConfig(), self.mesh(split), steps=10
    )
    state = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      jax.eval_shape(trainer.init, jax.random.key(0)),
      trainer.shardings,
    )
    batch = shard_batch(trainer.mesh, batch_lib.to_batch(batch_lib.empty(rows, LENGTH, 8)))
    return trainer.train_step.lower(state, batch).compile()

  def advance(self, model: ModelConfig, split: Split, rows: int) -> Any:
    """The compiled loop over simulations."""
    mesh = self.mesh(split)
    engine = Engine(model, self.tokenizer, self.task, mesh, PROMPT, LENGTH - PROMPT)
    config = TreeConfig(num_simulations=SIMULATIONS)
    thinker, weights = engine.thinker(config, True), make_weights(config, 1.0)
    params = init_params(model, self.vocab_size, jax.random.key(0))
    held = engine.gather(jax.device_put(params, param_shardings(model, self.vocab_size, mesh)))
    batch = engine.encode(self.problems[:rows], rows) | {
      "number": np.arange(rows, dtype=np.int32),
      "keys": np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), rows))),
      "limit": np.full(rows, SIMULATIONS, np.int32),
      "noise": np.ones(rows, np.float32),
    }
    thoughts = thinker.start(held, shard_batch(mesh, batch), weights)
    return thinker.advance.lower(held, thoughts, weights, np.int32(1)).compile()


def collectives(compiled: Any) -> str:
  """How many of each kind the program's text holds, those of a loop once; scalars left out."""
  kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
  found = re.findall(rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text())
  counts = collections.Counter(kind for shapes, kind in found if re.search(r"\w\[\d", shapes))
  return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"


def figures(compiled: Any) -> list[str]:
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  return [
    f"{cost['flops'] / 1e6:.1f}",
    f"{cost['bytes accessed'] / 1e6:.1f}",
    f"{memory.argument_size_in_bytes / 1e6:.2f}",
    f"{memory.temp_size_in_bytes / 1e6:.2f}",
  ]


def table(header: list[str], rows: list[list[str]]) -> None:
  for row in (header, ["---"] * len(header), *rows):
    print("| " + " | ".join(row) + " |", flush=True)
  print()


def main() -> None:
  bench = Bench()
  columns = ["MFLOPs", "MB accessed", "MB of arguments", "MB of temporaries"]
  programs = {"train step": (bench.step, 64), "search": (bench.advance, 32)}
  print(f"jax {jax.__version__}; {MODEL}; per device; the body of a loop counts once\n")
  for name, (compiled_of, rows) in programs.items():
    print(f"**{name}, {rows} rows over 8 devices**\n")
    lines = []
    for split in SPLITS:
      compiled = compiled_of(MODEL, split, rows)
      lines.append(["x".join(map(str, split)), collectives(compiled), *figures(compiled)])
    table(["data x fsdp x tensor", "collectives", *columns], lines)
  unrolled = dataclasses.replace(MODEL, scan_layers=False)
  token = unrolled.flops_per_token(bench.vocab_size, LENGTH)
  for name, (compiled_of, _) in programs.items():
    print(f"**{name}, 8 rows a device, layers not scanned**\n")
    # A simulation puts one position a row through the model; a step trains on all of them.
    counted = 8 * token * (3 * LENGTH if name == "train step" else 1)
    lines = []
    for data in (1, 2, 4, 8):
      compiled = compiled_of(unrolled, (data, 1, 1), 8 * data)
      share = counted / compiled.cost_analysis()["flops"]
      lines.append([str(data), *figures(compiled), f"{share:.3f}"])
    table(["devices", *columns, "analytic / compiled FLOPs"], lines)


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 8)
  main()
