"""Worker of test_presets: lowers every preset's train step and search on fake devices of its own.

Prints one JSON object a preset.
"""

from __future__ import annotations

import json
import math
import pathlib
import runpy
import sys

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero import tasks
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.train import Trainer
from jaxzero.models.transformer import param_targets
from jaxzero.parallel.mesh import batch_shards, make_mesh
from jaxzero.recipes.experiment import Experiment
from jaxzero.search.engine import Engine, make_weights
from jaxzero.tokenizers import Tokenizer


def lower_step(experiment: Experiment, vocab_size: int, mesh: jax.sharding.Mesh):
  """The train step of self-play, lowered on shapes."""
  config = experiment.improve
  trainer = Trainer(
    experiment.model, vocab_size, config.optimizer, config.loss, mesh, 10, config.micro_batches
  )
  state = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    jax.eval_shape(trainer.init, jax.random.key(0)),
    trainer.shardings,
  )
  candidates = experiment.self_play.play.tree.num_candidates
  batch = batch_lib.to_batch(batch_lib.empty(config.batch_size, experiment.context, candidates))
  return trainer.train_step.lower(state, batch)


def lower_search(experiment: Experiment, engine: Engine):
  """Self-play's loop over simulations, lowered on shapes."""
  config, rows = experiment.self_play.play.tree, engine.rows(experiment.self_play.batch_size)
  thinker, weights = engine.thinker(config, True), make_weights(config, 1.0)
  params = param_targets(engine.model, engine.tokenizer.vocab_size, engine.mesh)
  held = engine.gather.trace(params).out_info
  facts = engine.task.problem_array(engine.task.problem("train", 0, 0))

  def array(*shape: int, dtype=jnp.int32):
    return jax.ShapeDtypeStruct((rows, *shape), dtype)

  batch = {
    "prompts": array(engine.max_prompt),
    "prompt_length": array(),
    "facts": array(*facts.shape),
    "number": array(),
    "keys": array(2, dtype=jnp.uint32),
    "limit": array(),
    "noise": array(dtype=jnp.float32),
  }
  thoughts = jax.eval_shape(thinker.start, held, batch, weights)
  return thinker.advance.lower(held, thoughts, weights, np.int32(1))


def main() -> None:
  for path in map(pathlib.Path, sys.argv[1:]):
    experiment = runpy.run_path(str(path))["config"]
    sizes = experiment.mesh
    devices = math.prod((sizes.data or 1, sizes.fsdp, sizes.tensor))
    mesh = make_mesh(sizes, jax.devices()[:devices])
    task = tasks.make(experiment.task)
    prompts = [task.problem("train", 0, i).prompt for i in range(64)]
    tokenizer = Tokenizer.train(prompts, symbols=task.symbols)
    limits = experiment.max_prompt, experiment.self_play.play.max_tokens
    engine = Engine(experiment.model, tokenizer, task, mesh, *limits)
    lowered = {
      "step": lower_step(experiment, tokenizer.vocab_size, mesh),
      "search": lower_search(experiment, engine),
    }
    gathers = {name: program.as_text().count("all_gather") for name, program in lowered.items()}
    print(json.dumps({"preset": path.stem, "shards": batch_shards(mesh), **gathers}))


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", 32)
  main()
