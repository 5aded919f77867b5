"""A tiny model that has learned a few problems by heart, and engines that think with it."""

import jax
import numpy as np
import pytest

from jaxzero.learn.losses import LossConfig
from jaxzero.learn.supervised import Examples
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.transformer import param_shardings
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import Engine
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.transcript import encode_completion, encode_prompt

PROMPT, COMPLETION = 16, 30


@pytest.fixture(scope="session")
def play_config():
  tree = TreeConfig(order="gumbel", num_simulations=8, num_candidates=4, max_considered=4)
  return PlayConfig(tree=tree, max_searches=20, max_tokens=COMPLETION)


@pytest.fixture(scope="session")
def problems(task):
  """Four learned by heart, four never seen."""
  return [*task.problems("train", 0, 4), *task.problems("test", 0, 4)]


@pytest.fixture(scope="session")
def params(task, tokenizer, problems, tiny_model, mesh1):
  texts = []
  for problem in problems[:4]:
    completion = encode_completion(tokenizer, task.worked_example(problem))
    texts.append((encode_prompt(tokenizer, problem), completion))
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=10)
  trainer = Trainer(tiny_model, tokenizer.vocab_size, optimizer, LossConfig(), mesh1, steps=80)
  examples = Examples(texts, PROMPT + COMPLETION, 1, seed=0)
  state = trainer.init(jax.random.key(0))
  for step in range(80):
    state, _ = trainer.train_step(state, shard_batch(mesh1, examples.batch(step, 4)))
  params = jax.device_get(state.params)
  params["unembed"] = params["unembed"] * 0.8  # less sure of itself: more forks
  params["value"] = np.random.default_rng(0).normal(size=params["value"].shape).astype(np.float32)
  return params


@pytest.fixture(scope="session")
def engine1(tiny_model, tokenizer, task, mesh1):
  return Engine(tiny_model, tokenizer, task, mesh1, PROMPT, COMPLETION)


@pytest.fixture(scope="session")
def engine8(tiny_model, tokenizer, task):
  mesh = make_mesh(MeshConfig(data=4, fsdp=2))
  return Engine(tiny_model, tokenizer, task, mesh, PROMPT, COMPLETION)


@pytest.fixture(scope="session")
def params8(params, engine8):
  shardings = param_shardings(engine8.model, engine8.tokenizer.vocab_size, engine8.mesh)
  return jax.device_put(params, shardings)
