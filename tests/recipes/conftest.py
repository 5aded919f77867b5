"""A tiny run that found something: its folder, made by hand in no time."""

import dataclasses
import json

import pytest
from trees import worked_episode

from jaxzero.evals.config import EvalConfig
from jaxzero.learn.supervised import SupervisedConfig
from jaxzero.learn.train import OptimizerConfig
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import config_dict
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.base import TaskConfig


@pytest.fixture(scope="session")
def tiny_experiment(tiny_model):
  return Experiment(
    task=TaskConfig(worked_examples=16),
    model=dataclasses.replace(tiny_model, num_layers=1),
    supervised=SupervisedConfig(optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=2)),
    evaluation=EvalConfig(problems=8, validation_problems=8, batch_size=8, budgets=(1,)),
  )


@pytest.fixture(scope="session")
def played_run(tiny_experiment, task, tokenizer, tmp_path_factory):
  """Config, tokenizer and two rounds of episodes, some won, some lost; tests must not change it."""
  folder = tmp_path_factory.mktemp("runs") / "played"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(config_dict(tiny_experiment)))
  tokenizer.save(folder / "tokenizer")
  store = ReplayStore(folder / "episodes")
  for round in range(2):
    numbers = range(16 * round, 16 * (round + 1))
    store.write(round, [worked_episode(task, tokenizer, n, right=n % 3 > 0) for n in numbers])
  return folder
