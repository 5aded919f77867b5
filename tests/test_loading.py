"""A finished run as Python has it: with its process reward model, if it is one it can read."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.loading import LoadedRun
from jaxzero.models.transformer import init_params
from jaxzero.recipes.experiment import Experiment
from jaxzero.search.engine import Engine
from jaxzero.tasks.transcript import encode_completion


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model, tokenizer, task, mesh1):
  engine = Engine(tiny_model, tokenizer, task, mesh1)
  folder = tmp_path_factory.mktemp("run")
  return LoadedRun(folder, Experiment(), tokenizer, {}, engine, "self_play", 0)


@pytest.fixture(scope="module")
def prm(run):
  """The parameters of a reward model smaller than the policy, saved with the run."""
  shape = dataclasses.replace(run.engine.model, num_layers=1)
  params = init_params(shape, run.tokenizer.vocab_size, jax.random.key(0))
  state = {"step": jnp.int32(7)}
  Checkpoints(run.folder / "checkpoints" / "prm").save(7, params, state, {"step": 7}, {"seed": 0})
  return shape, params


@pytest.fixture(scope="module")
def facts(run, prm):
  """What RUN/prm.json says."""
  return {"tokenizer": run.tokenizer.fingerprint, "model": dataclasses.asdict(prm[0])}


def test_an_episode_is_as_long_as_the_worked_examples_are_on_average(run):
  task = run.engine.task
  worked = map(task.worked_example, task.problems("train", 0, 64))
  lengths = [len(encode_completion(run.tokenizer, one)) for one in worked]
  assert min(lengths) < run.mean_worked == sum(lengths) / 64 < max(lengths)


def test_a_scored_run_has_the_reward_model_beside_the_policy(run, prm, facts):
  (run.folder / "prm.json").write_text(json.dumps(facts))
  shape, params = prm
  scored = run.scored()
  assert scored.engine.scorer == shape and scored.engine.model == run.engine.model
  assert scored.engine.longest == 2 * run.engine.longest
  assert scored.params["policy"] is run.params
  jax.tree.map(np.testing.assert_array_equal, scored.params["prm"], params)


def test_a_run_without_a_reward_model_says_how_to_train_one(run, tmp_path):
  with pytest.raises(UserError, match="no process reward model; train one with `jaxzero prm "):
    dataclasses.replace(run, folder=tmp_path).scored()


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda facts: {**facts, "tokenizer": "0" * 64}, "tokens of tokenizer 00000000"),
    (lambda facts: {**facts, "model": {"layers": 3}}, "damaged or of another version"),
    (lambda facts: [], "damaged or of another version"),
  ],
)
def test_a_reward_model_of_another_tokenizer_or_version_is_refused(run, facts, change, says):
  (run.folder / "prm.json").write_text(json.dumps(change(facts)))
  with pytest.raises(UserError, match=says):
    run.scored()
