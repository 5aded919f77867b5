"""Are the ledger's FLOPs those of the programs? Analytic counts over XLA's, for decoding, tree
search and lanes. XLA counts a loop's body once, so each is compared with one turn of its loops
beside what goes before them; layers are not scanned. `python benchmarks/flops.py` prints the table.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from jaxzero import tasks
from jaxzero.models.transformer import init_params
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch
from jaxzero.recipes.experiment import Experiment
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine, make_weights
from jaxzero.tokenizers import Tokenizer

ROWS, NODES, LANES = 64, 256, 4


def ratios(experiment: Experiment) -> dict[str, float]:
  """Analytic FLOPs over XLA's, by what is counted."""
  model = dataclasses.replace(experiment.model, scan_layers=False)
  task = tasks.make(experiment.task)
  problems = task.problems("train", 0, ROWS)
  tokenizer = Tokenizer.train([problem.prompt for problem in problems])
  longest = experiment.self_play.play.max_tokens
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  engine = Engine(model, tokenizer, task, mesh, experiment.max_prompt, longest)
  params = engine.gather(init_params(model, tokenizer.vocab_size, jax.random.key(0)))
  keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), ROWS)))
  batch = engine.encode(problems, ROWS) | {"keys": keys}
  arrays = shard_batch(mesh, batch)
  decode = engine._decode.lower(params, arrays, np.float32(1.0), np.bool_(False))
  config = TreeConfig(num_simulations=NODES)
  thinker, weights = engine.thinker(config, True), make_weights(config, 1.0)
  fresh = shard_batch(
    mesh,
    batch
    | {
      "number": np.arange(ROWS, dtype=np.int32),
      "limit": np.full(ROWS, NODES, np.int32),
      "noise": np.ones(ROWS, np.float32),
    },
  )
  start = thinker.start.lower(params, fresh, weights)
  thoughts = thinker.start(params, fresh, weights)
  advance = thinker.advance.lower(params, thoughts, weights, np.int32(1))
  grow = engine._grow(LANES, LANES)
  counts = {"budget": np.full(ROWS, NODES, np.int32), "count": np.full(ROWS, LANES, np.int32)}
  lanes = grow.lower(
    params,
    shard_batch(mesh, batch | counts),
    np.float32(1.0),
    np.int32(LANES),
    np.int32(0),
    np.bool_(False),
  )
  prompts = ROWS * engine.max_prompt
  return {
    "decode, prompts and one token": engine.flops(prompts + ROWS) / _counted(decode),
    "tree search, prompts": engine.flops(prompts) / _counted(start),
    "tree search, one node a row": engine.flops(ROWS) / _counted(advance),
    "lanes": engine.flops(prompts + 2 * ROWS * LANES) / _counted(lanes),
  }


def _counted(lowered: Any) -> float:
  return lowered.compile().cost_analysis()["flops"]


def main() -> None:
  for name, ratio in ratios(Experiment()).items():
    print(f"| {name} | {ratio:.3f} |")


if __name__ == "__main__":
  main()
