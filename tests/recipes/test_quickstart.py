"""The whole story at smoke size: what a run leaves behind, and that its books balance."""

import dataclasses
import json
import os
import pathlib
import runpy
import shutil
import subprocess

import numpy as np
import pytest

import jaxzero
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.rules import unsolved
from jaxzero.recipes.run import Run, config_dict, from_dict, load_experiment
from jaxzero.recipes.steps import train_flops
from jaxzero.selfplay.episode import validate
from jaxzero.selfplay.replay import ReplayStore
from jaxzero.tasks.transcript import grade

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
  "name",
  ["quickstart", "smoke", "small", "base", "large", "arithmetic", "programs", "mixture"],
)
def test_configs_are_whole_and_survive_json(name):
  config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["config"]
  config.check()
  assert from_dict(Experiment, json.loads(json.dumps(config_dict(config)))) == config


def test_the_config_tree_stays_small():
  """A class that is used twice is learned once."""
  seen = set()

  def knobs(config):
    if not dataclasses.is_dataclass(config):
      return 1
    if type(config) in seen:
      return 0
    seen.add(type(config))
    return sum(knobs(getattr(config, field.name)) for field in dataclasses.fields(config))

  assert knobs(Experiment()) <= 83


def test_reanalysis_asks_again_what_no_search_has_solved(smoke_run, tmp_path):
  copy = tmp_path / "run"
  shutil.copytree(smoke_run, copy)
  experiment = load_experiment(copy)
  with Run(copy, experiment) as run:
    store = ReplayStore(copy / "episodes", read_only=True)
    assert unsolved(run, store, 2) == [], "off by default"
    half = dataclasses.replace(experiment.self_play, reanalysis_share=0.5)
    run.experiment = dataclasses.replace(experiment, self_play=half)
    again = unsolved(run, store, 2)
    assert again == unsolved(run, store, 2) and unsolved(run, store, 0) == []
    window = store.window(1, 2)
    episodes = [store.sampler(window, 0)[number] for number in range(len(window))]
  solved = {episode.problem_id for episode in episodes if len(episode.harvested)}
  ids = [problem.id for problem in again]
  assert 0 < len(ids) <= half.episodes_per_round // 2 and len(set(ids)) == len(ids)
  assert set(ids) <= {episode.problem_id for episode in episodes} - solved


def test_a_run_leaves_what_is_promised(smoke_run):
  for name in ("config.json", "ledger.json", "metrics.jsonl", "report.html", "trees.json"):
    assert (smoke_run / name).stat().st_size > 0
  summary = json.loads((smoke_run / "summary.json").read_text())
  for stage in ("supervised", "control", "self_play"):
    assert summary[stage]["strategy"] == "greedy" and summary[stage]["problems"] == 64
  assert [result["multiple"] for result in summary["search"]] == [1, 4]
  for result in summary["search"] + summary["sample"]:
    assert result["forward_tokens_per_problem"] <= result["budget"]


def test_the_ledger_is_the_sum_of_what_was_done(smoke_run):
  run = jaxzero.load(smoke_run)
  experiment = run.experiment
  ledger = json.loads((smoke_run / "ledger.json").read_text())
  rounds, steps = experiment.improve.rounds, experiment.improve.steps_per_round

  class Shapes:
    tokenizer = run.tokenizer

  Shapes.experiment = experiment
  learned = rounds * steps * train_flops(Shapes, experiment.improve.batch_size)
  assert ledger["learn"]["flops"] == pytest.approx(learned)
  control = ledger["control"]["flops"] / (ledger["selfplay"]["flops"] + ledger["learn"]["flops"])
  assert 0.8 <= control <= 1.0, "the control spends the FLOPs of self-play and learning"


def test_stored_episodes_are_valid_and_their_verdicts_true(smoke_run):
  run = jaxzero.load(smoke_run)
  store = ReplayStore(smoke_run / "episodes", read_only=True)
  episodes = [episode for round in store.rounds for episode in store.episodes(round)]
  assert len(episodes) == 3 * 64 and len({e.episode_id for e in episodes}) == len(episodes)
  for episode in episodes:
    validate(episode, run.tokenizer.vocab_size)
    problem = run.engine.task.parse(episode.prompt)
    assert grade(run.engine.task, run.tokenizer, problem, episode.tokens).right == episode.right
    if len(episode.harvested):
      assert grade(run.engine.task, run.tokenizer, problem, episode.harvested).right
    assert len(episode.tree_parent) == episode.forward_tokens + 1
    assert (episode.tree_verdict == 1).any() == (len(episode.harvested) > 0)
  searched = sum(episode.forward_tokens for episode in episodes)
  assert (
    json.loads((smoke_run / "ledger.json").read_text())["selfplay"]["forward_tokens"] == searched
  )


def test_self_play_learns_on_train_problems_alone(smoke_run):
  experiment = load_experiment(smoke_run)
  run = jaxzero.load(smoke_run)
  store = ReplayStore(smoke_run / "episodes", read_only=True)
  played = {e.problem_id for round in store.rounds for e in store.episodes(round)}
  for split in ("validation", "test"):
    held_out = run.engine.task.problems(split, 0, experiment.evaluation.problems)
    assert not played & {problem.id for problem in held_out}


def test_the_same_command_again_changes_nothing(smoke_run, smoke_command):
  summary = smoke_run / "summary.json"
  before = {p: p.read_bytes() for p in smoke_run.rglob("*.json*")}
  done = subprocess.run(smoke_command(smoke_run), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for path, content in before.items():
    if path.name not in ("summary.json", "goodput.json"):
      assert path.read_bytes() == content, path
  old, new = (json.loads(x) for x in (before[summary], summary.read_bytes()))
  assert {**new, "peak_rss_bytes": 0} == {**old, "peak_rss_bytes": 0}


def test_every_stage_runs_sharded_over_all_axes_and_near_a_reference(smoke_command, tmp_path):
  flags = ["--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2"]
  flags += ["--model.num-kv-heads", "2", "--improve.loss.kl-weight", "0.1"]
  flags += ["--supervised.steps", "20", "--evaluation.budgets", "1"]
  environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "8", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
  done = subprocess.run(
    [*smoke_command(tmp_path / "run"), *flags], capture_output=True, text=True, env=environment
  )
  assert done.returncode == 0, done.stderr
  rows = [json.loads(row) for row in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  kl = [row["kl"] for row in rows if row["kind"] == "round"]
  assert abs(kl[0]) < 1e-6 < kl[-1], "the first update has a rate of 0"
  assert jaxzero.load(tmp_path / "run").step == 6, "it loads on another mesh"


def test_load_gives_the_newest_parameters(smoke_run):
  run = jaxzero.load(smoke_run)
  assert run.stage == "self_play"
  assert all(np.isfinite(leaf).all() for leaf in (run.params["embed"], run.params["unembed"]))
  assert jaxzero.load(smoke_run, "pretrain").stage == "pretrain"
