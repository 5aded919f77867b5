"""Are the ledger's FLOPs those of the programs? Analytic counts over XLA's.

XLA counts a loop's body once, so each program is compared with one turn of its loops beside what
goes before them; layers are not scanned. Decoding asks for no score of a prompt, so there XLA
leaves out the reward model's last layer, which the ledger counts. `python benchmarks/flops.py`
prints the table.
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxzero import tasks
from jaxzero.learn.batch import Batch, empty, to_batch
from jaxzero.learn.train import Trainer
from jaxzero.models.transformer import init_params
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.steps import train_flops
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine, make_weights
from jaxzero.tokenizers import Tokenizer

ROWS, NODES, LANES, SAMPLES = 64, 256, 4, 2


def ratios(experiment: Experiment, only: str = "") -> dict[str, float]:
  """Analytic FLOPs over XLA's, by what is counted; only: of what has this in its name."""
  programs = Programs(experiment).all()
  return {name: one() for name, one in programs.items() if only in name}


class Programs:
  """The compiled programs of one model, on one device; nothing is run but their starts."""

  def __init__(self, experiment: Experiment):
    model = dataclasses.replace(experiment.model, scan_layers=False)
    self.experiment = dataclasses.replace(experiment, model=model)
    task = tasks.make(experiment.task)
    problems = task.problems("train", 0, ROWS)
    self.tokenizer = Tokenizer.train([problem.prompt for problem in problems])
    longest = experiment.self_play.play.max_tokens
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    self.engine = Engine(model, self.tokenizer, task, mesh, experiment.max_prompt, longest)
    self.params = self.engine.gather(
      init_params(model, self.tokenizer.vocab_size, jax.random.key(0))
    )
    keys = np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), ROWS)))
    self.batch = self.engine.encode(problems, ROWS) | {"keys": keys}
    self.prompts = ROWS * self.engine.max_prompt
    self.sampling = np.float32(1.0), np.bool_(False)

  def all(self) -> dict[str, Callable[[], float]]:
    return {
      "decode, prompts and one token": self.decode,
      "the same beside a reward model": self.scored,
      "prompts and their scores by a reward model": self.foreseen,
      "tree search, prompts": functools.partial(self.tree, False),
      "tree search, one node a row": functools.partial(self.tree, True),
      "lanes": self.lanes,
      "samples from prefixes": self.roll_out,
      "train step": self.train,
    }

  def decode(self) -> float:
    lowered = self.engine._decode.lower(self.params, self._placed(), *self.sampling)
    return self.engine.flops(self.prompts + ROWS) / _counted(lowered)

  def scored(self) -> float:
    engine, params = self._scored()
    lowered = engine._decode.lower(params, self._placed(), *self.sampling)
    return engine.flops(self.prompts + ROWS) / _counted(lowered)

  def foreseen(self) -> float:
    engine, params = self._scored()
    return engine.flops(self.prompts) / _counted(engine._foresee.lower(params, self._placed()))

  def _scored(self) -> tuple[Engine, Any]:
    return self.engine.scored(self.engine.model), {"policy": self.params, "prm": self.params}

  def tree(self, grows: bool) -> float:
    config = TreeConfig(num_simulations=NODES)
    thinker, weights = self.engine.thinker(config, True), make_weights(config, 1.0)
    fresh = self._placed(
      number=np.arange(ROWS, dtype=np.int32),
      limit=np.full(ROWS, NODES, np.int32),
      noise=np.ones(ROWS, np.float32),
    )
    if not grows:
      lowered = thinker.start.lower(self.params, fresh, weights)
      return self.engine.flops(self.prompts) / _counted(lowered)
    thoughts = thinker.start(self.params, fresh, weights)
    lowered = thinker.advance.lower(self.params, thoughts, weights, np.int32(1))
    return self.engine.flops(ROWS) / _counted(lowered)

  def lanes(self) -> float:
    counts = {"budget": np.full(ROWS, NODES, np.int32), "count": np.full(ROWS, LANES, np.int32)}
    scalars = np.float32(1.0), np.int32(LANES), np.int32(0), np.bool_(False)
    grow = self.engine._grow(LANES, LANES)
    lowered = grow.lower(self.params, self._placed(**counts), *scalars)
    return self.engine.flops(self.prompts + 2 * ROWS * LANES) / _counted(lowered)

  def roll_out(self) -> float:
    prefixes = np.zeros((ROWS, self.engine.max_tokens), np.int32)
    batch = self._placed(completion=prefixes, length=np.ones(ROWS, np.int32))
    lowered = self.engine._roll_out(SAMPLES).lower(self.params, batch, *self.sampling)
    positions = self.prompts + ROWS * (self.engine.max_tokens + SAMPLES)
    return self.engine.flops(positions) / _counted(lowered)

  def train(self) -> float:
    config = self.experiment.improve
    mesh, vocab_size = self.engine.mesh, self.tokenizer.vocab_size
    trainer = Trainer(
      self.experiment.model, vocab_size, config.optimizer, config.loss, mesh, steps=10
    )
    candidates = self.experiment.self_play.play.tree.num_candidates
    batch: Batch = to_batch(empty(config.batch_size, self.experiment.context, candidates))
    state = jax.eval_shape(trainer.init, jax.random.key(0))
    # What `train_flops` reads of a run.
    run: Any = types.SimpleNamespace(experiment=self.experiment, tokenizer=self.tokenizer)
    counted = _counted(trainer.train_step.lower(state, batch))
    return train_flops(run, config.batch_size) / counted

  def _placed(self, **more: np.ndarray) -> dict[str, jax.Array]:
    return shard_batch(self.engine.mesh, {**self.batch, **more})


def _counted(lowered: Any) -> float:
  return lowered.compile().cost_analysis()["flops"]


def main() -> None:
  for name, ratio in ratios(Experiment()).items():
    print(f"| {name} | {ratio:.3f} |")


if __name__ == "__main__":
  main()
