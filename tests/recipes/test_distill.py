"""A student of a tiny run: it learns, goes on after a stop, and is a run of its own."""

import dataclasses
import json
import shutil
import types

import jax
import numpy as np
import pytest

import jaxzero
from jaxzero.errors import UserError
from jaxzero.learn.lessons import DistillConfig
from jaxzero.models.transformer import init_params
from jaxzero.recipes import distill as distill_lib
from jaxzero.recipes.distill import TeacherRun, distill
from jaxzero.recipes.stages import newest_state
from jaxzero.recipes.verify import verify
from jaxzero.search.engine import Engine
from jaxzero.tasks.transcript import encode_prompt, grade
from jaxzero.tokenizers import Tokenizer

pytestmark = pytest.mark.usefixtures("quick_compiles")
CONFIG = DistillConfig(targets="both", steps=12, batch_size=16, evaluate_every=6)


@pytest.fixture(scope="module", autouse=True)
def _one_device(mesh1):
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("jaxzero.recipes.run.make_mesh", lambda config: mesh1)
    yield


@pytest.fixture(scope="module", autouse=True)
def thought_again(teacher):
  """Untrained, the teacher would find nothing: its new trees are the stored ones."""
  stored = {episode.problem_id: episode.tree for episode in teacher.episodes(0)}

  def think(engine, params, problems, *_, **options):
    assert not options["stop_when_found"] and options["verify_inside"]
    trees = [stored[problem.id] for problem in problems]
    tokens = np.array([len(tree.parent) - 1 for tree in trees])
    insight = types.SimpleNamespace(forward_tokens=tokens)
    return types.SimpleNamespace(trees=trees, insight=insight, positions=float(tokens.sum()))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(distill_lib, "think", think)
    yield sum(len(tree.parent) - 1 for tree in stored.values())


@pytest.fixture(scope="module")
def teacher(played_run, tiny_experiment, tokenizer, task, mesh1):
  model = tiny_experiment.model
  params = init_params(model, tokenizer.vocab_size, jax.random.key(1))
  engine = Engine(model, tokenizer, task, mesh1, 16, 30)
  return TeacherRun(played_run, tiny_experiment, engine, params, "self_play", 7)


@pytest.fixture(scope="module")
def student(tiny_experiment):
  small = dataclasses.replace(tiny_experiment.model, embed_dim=16, ffn_dim=24)
  return dataclasses.replace(tiny_experiment, model=small)


@pytest.fixture(scope="module")
def taught(teacher, student, tmp_path_factory):
  folder = tmp_path_factory.mktemp("students") / "both"
  return folder, distill(teacher, student, CONFIG, folder)


def rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_student_learns_and_its_books_are_whole(taught, teacher, thought_again):
  folder, result = taught
  losses = [row["policy_loss"] for row in rows(folder)]
  assert len(losses) == 2 and losses[1] < losses[0] - 0.2
  assert result["completions"] == 32 and result["too_long"] == 0
  assert result["parameters"] < result["teacher_parameters"]
  ledger = json.loads((folder / "ledger.json").read_text())
  assert set(ledger) == {"teacher", "distill", "eval"}
  assert ledger["distill"]["forward_tokens"] == 12 * 16 * 46
  assert ledger["teacher"]["forward_tokens"] == thought_again
  assert ledger["teacher"]["flops"] == teacher.engine.flops(thought_again)


def test_a_student_is_a_run_that_loads_and_verifies(taught, teacher, student):
  folder, result = taught
  loaded = jaxzero.load(folder)
  assert loaded.stage == "distill" and loaded.step == result["test"]["step"]
  assert loaded.model == student.model
  assert loaded.experiment.task == teacher.experiment.task
  assert loaded.tokenizer.fingerprint == teacher.engine.tokenizer.fingerprint
  assert verify(folder).findings == []


def test_the_same_command_again_only_reads_the_result(taught, teacher, student, monkeypatch):
  folder, result = taught
  monkeypatch.setattr(distill_lib, "_teach", None)
  assert distill(teacher, student, CONFIG, folder) == result
  with pytest.raises(UserError, match=r"other lessons \(differs in steps: 12 there, 13 here\)"):
    distill(teacher, student, dataclasses.replace(CONFIG, steps=13), folder)


def test_a_run_that_is_no_student_is_left_alone(taught, teacher, student, tmp_path):
  other = shutil.copytree(taught[0], tmp_path / "other")
  (other / "distill.json").unlink()
  before = (other / "metrics.jsonl").read_bytes()
  with pytest.raises(UserError, match="holds a run of its own"):
    distill(teacher, student, CONFIG, other)
  assert (other / "metrics.jsonl").read_bytes() == before and not (other / "distill.json").exists()


def test_what_has_not_begun_may_still_learn_something_else(teacher, student, tmp_path, monkeypatch):
  monkeypatch.setattr(distill_lib, "right_ends", lambda *_: [])
  with pytest.raises(UserError, match="finds no right end of 32 problems in trees of 160 nodes"):
    distill(teacher, student, CONFIG, tmp_path / "student")
  monkeypatch.setattr(distill_lib, "_teach", lambda *_: {})
  more = dataclasses.replace(CONFIG, nodes=320)
  assert distill(teacher, student, more, tmp_path / "student") == {}


def test_a_stopped_student_ends_in_the_same_bits(taught, teacher, student, tmp_path, monkeypatch):
  folder, _ = taught
  stopped, done = tmp_path / "stopped", 0

  def once(run, params, step):
    nonlocal done
    done += 1
    if done == 2:
      raise KeyboardInterrupt
    return original(run, params, step)

  original = distill_lib.validate
  monkeypatch.setattr(distill_lib, "validate", once)
  with pytest.raises(KeyboardInterrupt):
    distill(teacher, student, CONFIG, stopped)
  monkeypatch.undo()
  distill(teacher, student, CONFIG, stopped)
  whole, again = newest_state(folder, "distill"), newest_state(stopped, "distill")
  assert whole.keys() == again.keys()
  for name, array in whole.items():
    np.testing.assert_array_equal(array, again[name], err_msg=name)
  books = [json.loads((f / "ledger.json").read_text()) for f in (folder, stopped)]
  flops = [{stage: entry["flops"] for stage, entry in book.items()} for book in books]
  assert flops[0] == flops[1]


def test_another_tokenizer_takes_paths_alone(teacher, student, tmp_path):
  other = Tokenizer.train(["a needle in a haystack"] * 5 + ["1+2=3"], vocab_size=300)
  with pytest.raises(UserError, match="use --targets paths"):
    distill(teacher, student, CONFIG, tmp_path / "student", other)
  assert not (tmp_path / "student").exists()
  paths = dataclasses.replace(CONFIG, targets="paths")
  lesson = distill_lib._lesson(teacher, paths, other, 64)
  assert len(lesson.problems) == len(lesson.texts) == len(lesson.games) == 32
  for problem, (prompt, completion) in zip(lesson.problems, lesson.texts, strict=True):
    assert prompt == encode_prompt(other, problem)
    assert grade(teacher.engine.task, other, problem, completion).right
  shortest = min(len(prompt) + len(completion) for prompt, completion in lesson.texts)
  few = distill_lib._lesson(teacher, paths, other, shortest)
  assert 0 < len(few.texts) == 32 - few.too_long < 32


def test_a_run_without_trees_is_refused_before_anything_is_written(
  teacher, student, tokenizer, tmp_path
):
  bare = dataclasses.replace(teacher, folder=tmp_path / "bare")
  with pytest.raises(UserError, match="has no episodes to learn from"):
    distill(bare, student, CONFIG, tmp_path / "student")
  shutil.copytree(teacher.folder, tmp_path / "lost")
  lost = dataclasses.replace(teacher, folder=tmp_path / "lost")
  store = distill_lib.ReplayStore(tmp_path / "lost" / "episodes")
  store.discard_after(-1)
  with pytest.raises(UserError, match="has no episodes to learn from"):
    distill(lost, student, CONFIG, tmp_path / "student")
  store.write(0, [_nothing_found(next(iter(teacher.episodes(0))), tokenizer)])
  with pytest.raises(UserError, match=r"none of the 1 episodes .* holds a right completion"):
    distill(lost, student, CONFIG, tmp_path / "student")
  assert not (tmp_path / "student").exists()


def _nothing_found(episode, tokenizer):
  """A lost game of a single token."""
  changes = {
    "tokens": np.array([tokenizer.end_id], np.int32),
    "right": False,
    "tree_parent": np.array([-1, 0], np.int32),
    "tree_token": np.array([0, tokenizer.end_id], np.int32),
    "tree_verdict": np.array([-1, 0], np.int8),
  }
  for name in ("tree_prior", "tree_visits", "tree_value"):
    changes[name] = getattr(episode, name)[:2]
  for name in ("harvested", "candidates", "weights", "values", "visit_counts"):
    changes[name] = getattr(episode, name)[:0]
  return dataclasses.replace(episode, **changes)
