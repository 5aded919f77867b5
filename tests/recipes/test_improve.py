"""The rules that learn from samples, in the loop of all: what they play and learn, their books, and
how they go on after a stop."""

import dataclasses
import functools
import runpy
import types
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import fault_points
from jaxzero.errors import Preempted, UserError
from jaxzero.learn.supervised import Examples
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.config import ModelConfig
from jaxzero.parallel.sharding import shard_batch
from jaxzero.recipes import improve as improve_lib
from jaxzero.recipes import rules, steps
from jaxzero.recipes import run as run_lib
from jaxzero.recipes.improve import improve
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import newest_state
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.base import TaskConfig
from jaxzero.tasks.transcript import grade

SMOKE = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "smoke.py"))["config"]
SAMPLING = ("expert_iteration", "grpo")
G, EPISODES, STEPS = 4, 16, 2
MAX_FLOPS = 2e8  # more than one round takes, less than two


def experiment(rule, **improvement):
  play = SMOKE.self_play.play
  return dataclasses.replace(
    SMOKE,
    task=TaskConfig(numbers=2, max_number=9, max_target=20, worked_examples=60),
    model=ModelConfig(
      num_layers=1, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, ffn_dim=64
    ),
    max_prompt=12,
    self_play=dataclasses.replace(
      SMOKE.self_play,
      play=dataclasses.replace(
        play, tree=dataclasses.replace(play.tree, num_candidates=8), max_tokens=14
      ),
      episodes_per_round=EPISODES,
      batch_size=EPISODES,
      samples=G,
    ),
    improve=dataclasses.replace(
      SMOKE.improve,
      rule=rule,
      rounds=200,
      steps_per_round=STEPS,
      batch_size=16,
      optimizer=OptimizerConfig(learning_rate=1e-2),
      **improvement,
    ),
    evaluation=dataclasses.replace(SMOKE.evaluation, problems=8, validation_problems=8),
  )


@pytest.fixture(scope="module")
def improved(quick_compiles, mesh1, tmp_path_factory):
  """improved(name, rule) -> the run, when its FLOPs are spent; all share their programs."""
  root, shared = tmp_path_factory.mktemp("rules"), {}
  engine, trainer = run_lib.Engine, functools.cache(Trainer)

  def start():
    """Parameters that solve some problems and not others."""
    with Run(root / "start", experiment("grpo")) as run:
      config = run.experiment.improve
      made = trainer(
        run.experiment.model, run.tokenizer.vocab_size, config.optimizer, config.loss, mesh1,
        config.rounds * STEPS, 1,
      )  # fmt: skip
      examples = Examples(run.worked_examples, run.experiment.context, 1, 0)
      state = made.init(jax.random.key(0))
      for step in range(config.rounds * STEPS):
        state, _ = made.train_step(state, shard_batch(mesh1, examples.batch(step, 16)), None)
    return jax.device_get(state.params)

  def go(name, rule):
    if "start" not in shared:
      shared["start"] = start()
    with Run(root / name, experiment(rule)) as run:
      improve(run, jax.device_put(shared["start"], mesh1.devices.item()), MAX_FLOPS)
    return run

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run_lib, "make_mesh", lambda _: mesh1)
    patch.setattr(run_lib, "Engine", lambda *of: shared.setdefault("engine", engine(*of)))
    patch.setattr(improve_lib, "Trainer", trainer)
    patch.setattr(improve_lib, "validate", lambda *_: 0.5)
    go.shared = shared
    yield go


@pytest.fixture(scope="module")
def whole(improved):
  return {rule: improved(rule, rule) for rule in SAMPLING}


@pytest.mark.parametrize(("rule", "module", "point"), [
  ("expert_iteration", run_lib, 2), ("expert_iteration", steps, 2), ("grpo", steps, 0),
])  # fmt: skip
def test_stopped_it_ends_in_the_same_bits(improved, whole, monkeypatch, rule, module, point):
  """Stopped while a round is played, or between two of its steps."""
  name, points = f"{rule}-{module.__name__}-{point}", iter(range(100))
  reached = types.SimpleNamespace(reached=lambda: next(points) >= point)
  with monkeypatch.context() as patch:
    patch.setattr(module, "preemption", reached)
    with pytest.raises(Preempted, match="self-play" if module is run_lib else "step"):
      improved(name, rule)
  again = improved(name, rule)
  a, b = newest_state(whole[rule].folder, "self_play"), newest_state(again.folder, "self_play")
  for leaf in a:
    np.testing.assert_array_equal(a[leaf], b[leaf], err_msg=leaf)
  for entry in ("selfplay", "learn"):
    assert whole[rule].ledger[entry]["flops"] == again.ledger[entry]["flops"] > 0
  hashes = [[row["batch_hash"] for row in run.metrics] for run in (whole[rule], again)]
  assert hashes[0] == hashes[1] and len(hashes[0]) == 2


def stored(run, *rounds):
  store = ReplayStore(run.folder / "episodes", read_only=True)
  return [episode for round in rounds for episode in store.episodes(round)]


def learning(run, round):
  return rules.learning(run, ReplayStore(run.folder / "episodes", read_only=True), round)


@pytest.mark.parametrize("rule", SAMPLING)
def test_samples_are_stored_as_trees_and_each_is_drawn_to_its_end(whole, rule):
  episodes = stored(whole[rule], 0, 1)
  assert len(episodes) == 2 * EPISODES
  for episode in episodes:
    drawn = episode.tree.visits[episode.tree.verdict >= 0]
    assert drawn.sum() == G and len(episode.tree.parent) - 1 == episode.forward_tokens
  paid = whole[rule].ledger["selfplay"]["forward_tokens"]
  assert paid == sum(episode.forward_tokens for episode in episodes)


def test_expert_iteration_learns_right_samples_of_all_rounds_in_the_window(whole):
  run = whole["expert_iteration"]
  samples = learning(run, 1).samples.items
  prompts = {e.prompt_tokens.tobytes(): e.prompt for e in stored(run, 0, 1)}
  for sample in samples:
    problem = run.task.parse(prompts[sample.prompt.tobytes()])
    assert grade(run.task, run.tokenizer, problem, sample.completion).right
  first = learning(run, 0).samples.items
  assert 0 < len(first) < len(samples) < 2 * G * EPISODES


def test_grpo_learns_from_the_round_that_was_just_played(whole):
  run = whole["grpo"]
  newest = {episode.prompt_tokens.tobytes() for episode in stored(run, 1)}
  samples = learning(run, 1).samples.items
  assert samples and {sample.prompt.tobytes() for sample in samples} <= newest
  assert {np.sign(sample.advantage) for sample in samples} == {-1.0, 1.0}


def test_a_sample_keeps_the_log_probabilities_of_the_policy_that_drew_it(improved, whole):
  run, config = whole["grpo"], whole["grpo"].experiment.improve
  batch = learning(run, 0).batch(0, range(16))
  trainer = improve_lib.Trainer(
    run.experiment.model, run.tokenizer.vocab_size, config.optimizer, config.loss, run.mesh,
    config.rounds * STEPS, 1,
  )  # fmt: skip

  @jax.jit
  def log_p(params, batch):
    return jax.nn.log_softmax(trainer._forward(params, batch).logits)

  now = log_p(improved.shared["start"], batch)[:, :-1]
  now = np.take_along_axis(np.asarray(now), batch.tokens[:, 1:, None], axis=-1)[..., 0]
  drawn = batch.advantage[:, :-1] != 0
  assert drawn.any()
  np.testing.assert_allclose(now[drawn], batch.old_log_p[:, :-1][drawn], atol=1e-4)


@pytest.mark.parametrize("rule", SAMPLING)
def test_max_flops_is_overshot_by_less_than_a_round(improved, whole, rule):
  rows = whole[rule].metrics
  before, after = (row["flops"] for row in rows)
  assert before < MAX_FLOPS <= after
  ledger = whole[rule].ledger
  assert after == ledger["selfplay"]["flops"] + ledger["learn"]["flops"]
  assert rows[-1]["validation_accuracy"] == 0.5
  assert improved(rule, rule).metrics == rows, "nothing is left to do"


def test_restarted_rounds_learn_from_the_first_parameters(tmp_path, monkeypatch, mesh1):
  """With a model of three numbers: the last round's batches alone decide where it ends."""
  monkeypatch.setattr(run_lib, "make_mesh", lambda _: mesh1)
  for name in ("Trainer", "play_round"):
    monkeypatch.setattr(improve_lib, name, getattr(fault_points, name))
  monkeypatch.setattr(improve_lib, "validate", lambda *_: 0.5)
  config = fault_points.config()
  learned = dataclasses.replace(config.improve, rule="expert_iteration", restart=True)
  with Run(tmp_path / "run", dataclasses.replace(config, improve=learned)) as run:
    params = improve(run, fault_points.Trainer.params())
    window, weight = learning(run, learned.rounds - 1), 0.0
    for step in range(2 * learned.rounds - 2, 2 * learned.rounds):
      weight = 0.9 * weight + window.batch(step, range(4)).tokens.sum() / 1000
  np.testing.assert_allclose(params["weight"], weight, rtol=1e-5)


@pytest.mark.parametrize(
  ("rule", "changes", "word"),
  [
    ("magic", {}, "rule=magic is unknown"),
    ("grpo", {"samples": 1}, "samples=1 must be 2 or more"),
    ("grpo", {"temperature": 0.7}, "temperature=0.7 must be 1"),
    ("expert_iteration", {"curriculum": True}, "rule=expert_iteration .* never trains"),
  ],
)
def test_what_cannot_be_learned_is_refused(rule, changes, word):
  config = experiment(rule)
  played = dataclasses.replace(config.self_play, **changes)
  with pytest.raises(UserError, match=word):
    dataclasses.replace(config, self_play=played).check()


def test_only_expert_iteration_restarts():
  with pytest.raises(UserError, match="restart is made for expert_iteration, not for search"):
    experiment("search", restart=True).check()
