"""A run's reward model: what it leaves behind, that it learns, resumes, and is graded truly."""

import collections
import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from etils import epath

import jaxzero
from jaxzero.checkpoints import Checkpoints
from jaxzero.cli import main
from jaxzero.errors import Preempted, UserError
from jaxzero.evals.prm import ranking, sample_solutions
from jaxzero.learn.reward import LabelledSteps, StepScorer, cross_entropy
from jaxzero.learn.train import OptimizerConfig
from jaxzero.parallel import preemption
from jaxzero.recipes.prm import LABELS, VALIDATION_LABELS, PrmConfig, discard, train_prm
from jaxzero.recipes.stages import newest_state
from jaxzero.selfplay.labels import StepLabels, step_ends
from jaxzero.tasks import expression
from jaxzero.tasks.streams import split_of

CONFIG = PrmConfig(
  problems=96,
  rollouts=4,
  samples=2,
  explored=2,
  steps=60,
  batch_size=32,
  evaluate_every=30,
  optimizer=OptimizerConfig(learning_rate=3e-3, warmup_steps=5),
  validation_problems=32,
  grade_problems=32,
  grade_samples=8,
)


@pytest.fixture(scope="module")
def made(smoke_run, tmp_path_factory):
  """A copy of the smoke run with its reward model, and RUN/prm.json."""
  folder = tmp_path_factory.mktemp("prm") / "run"
  shutil.copytree(smoke_run, folder)
  return folder, train_prm(folder, CONFIG)


def texts_of(run, labels):
  """(prompt's text, completion's tokens) of every row."""
  for row in range(len(labels)):
    prompt = labels.prompts[row, 1 : labels.prompt_length[row] - 1].tolist()
    yield run.tokenizer.decode(prompt), labels.tokens[row, : labels.length[row]].tolist()


def test_the_best_checkpoint_is_kept(made):
  folder, result = made
  held_out = StepLabels.load(folder / VALIDATION_LABELS)
  rankings = [row["validation_ranking"] for row in result["history"]]
  assert len(rankings) == 2 and result["validation_ranking"] == max(rankings)
  assert result["validation_loss"] < 0.3
  run = jaxzero.load(folder)
  best = Checkpoints(folder / "checkpoints" / "prm", keep_best=True)
  assert best.best() == result["step"]
  prm = best.restore(result["step"], run.params)["params"]
  scorer = StepScorer(run.model, run.tokenizer.vocab_size, run.engine.mesh)
  scores = scorer(prm, held_out)
  assert cross_entropy(scores, held_out) == pytest.approx(result["validation_loss"], abs=1e-5)
  ranked = ranking(scores, held_out, run.tokenizer)
  assert ranked == pytest.approx(result["validation_ranking"], abs=1e-5)


def test_labels_stand_where_steps_end_on_problems_of_their_own_split(made):
  folder, result = made
  run = jaxzero.load(folder)
  for path, split in ((LABELS, "train"), (VALIDATION_LABELS, "validation")):
    labels = StepLabels.load(folder / path)
    for row, (prompt, tokens) in enumerate(texts_of(run, labels)):
      assert split_of(run.engine.task.parse(prompt).id) == split
      labelled = np.flatnonzero(np.isfinite(labels.success[row])).tolist()
      assert labelled == step_ends(run.tokenizer, tokens)
      if tokens[-1] == run.tokenizer.end_id:
        assert labels.success[row, len(tokens)] == labels.right[row]
  assert result["labels"]["training"]["labels"] > result["labels"]["validation"]["labels"] > 0


def test_every_fourth_batch_is_ended_completions_with_all_their_labels(made):
  labels, tokenizer = StepLabels.load(made[0] / LABELS), jaxzero.load(made[0]).tokenizer
  context = labels.prompts.shape[1] + labels.tokens.shape[1]
  ended = labels.tokens[np.arange(len(labels)), labels.length - 1] == tokenizer.end_id
  n = int(ended.sum())
  examples = LabelledSteps(labels, context, 0, tokenizer)
  batch = examples.batch(3, n, range(n))
  assert batch.tokens.shape[1] == context
  assert batch.value_weight.sum() == np.isfinite(labels.success[ended]).sum()
  np.testing.assert_allclose(batch.value_target.sum(), np.nansum(labels.success[ended]), rtol=1e-5)
  assert not batch.hard_weight.any(), "next tokens are not learned"
  some = examples.batch(3, n, [5, 7])
  np.testing.assert_array_equal(some.tokens, batch.tokens[[5, 7]])


def test_labels_tell_from_where_on_the_verifier_knew(made):
  labels, run = StepLabels.load(made[0] / LABELS), jaxzero.load(made[0])
  task, never = run.engine.task, labels.tokens.shape[1] + 1
  verifier = task.device_verifier(run.tokenizer)
  read = jax.jit(lambda state, token: (state := verifier.read(state, token), verifier.lost(state)))
  for row, (prompt, tokens) in enumerate(itertools.islice(texts_of(run, labels), 100)):
    state = verifier.start(task.problem_array(task.parse(prompt)))
    known = []
    for e, token in enumerate(tokens, start=1):
      state, lost = read(state, token)
      if lost and np.isfinite(labels.success[row, e]) and token != run.tokenizer.end_id:
        known.append(e)
    assert labels.lost[row] == min(known, default=never)
  assert (labels.lost < never).any()


def test_the_other_batches_draw_distinct_prefixes_evenly_by_the_label_of_their_end(made):
  labels, run = StepLabels.load(made[0] / LABELS), jaxzero.load(made[0])
  context = labels.prompts.shape[1] + labels.tokens.shape[1]
  labels.lost[::2] = labels.tokens.shape[1] + 1  # so small a policy hardly writes a legal step
  truth = {}
  for row in range(len(labels)):
    prompt = tuple(labels.prompts[row, : labels.prompt_length[row]].tolist())
    tokens = labels.tokens[row, : labels.length[row]].tolist()
    for e, token in enumerate(tokens, start=1):
      known = np.isfinite(labels.success[row, e]) and e < labels.lost[row]
      if token == run.tokenizer.step_id and known:
        truth[prompt + tuple(tokens[:e])] = labels.success[row, e]
  examples = LabelledSteps(labels, context, 0, run.tokenizer)
  count, drawn = 256, collections.Counter()
  for step in (step for step in range(80) if step % 4 != 3):
    batch = examples.batch(step, count, range(count))
    T = batch.tokens.shape[1]
    assert context >= T and (context == T or T % 8 == 0) and T - batch.length.min() < 8
    assert (batch.value_weight.sum(axis=1) == 1).all()
    assert (batch.value_weight.argmax(axis=1) == batch.length - 1).all()
    for tokens, n, target in zip(batch.tokens, batch.length, batch.value_target, strict=True):
      read = tuple(tokens[:n].tolist())
      assert target[n - 1] == truth[read]
      drawn[read] += 1
  mean = drawn.total() / len(truth)
  assert len(drawn) > 0.95 * len(truth) and mean > 8
  assert max(drawn.values()) < 4 * mean, "often sampled ones count no more"
  some = examples.batch(0, count, [5, 7])
  np.testing.assert_array_equal(some.tokens, examples.batch(0, count, range(count)).tokens[[5, 7]])


def test_the_books_hold_the_prm_beside_the_story(made, smoke_run):
  folder, result = made
  before, after = (json.loads((f / "ledger.json").read_text()) for f in (smoke_run, folder))
  assert {name: after[name] for name in before} == before and set(after) - set(before) == {"prm"}
  assert after["prm"] == result["ledger"] and after["prm"]["flops"] > 0
  assert (folder / "metrics.jsonl").read_bytes() == (smoke_run / "metrics.jsonl").read_bytes()
  run = jaxzero.load(folder)
  assert result["tokenizer"] == run.tokenizer.fingerprint
  assert result["model"] == dataclasses.asdict(run.model)


def test_stopped_and_continued_it_ends_in_the_same_bits(made, smoke_run, tmp_path, monkeypatch):
  folder, result = made
  other = tmp_path / "run"
  shutil.copytree(smoke_run, other)
  polls = itertools.count()
  with monkeypatch.context() as patch:
    # Labelling asks a few times, too; it is done again, to the same labels.
    patch.setattr(preemption, "reached", lambda: next(polls) == 40)
    with pytest.raises(Preempted, match=r"step \d+ of prm"):
      train_prm(other, CONFIG)
  again = train_prm(other, CONFIG)
  assert again["history"] == result["history"]
  whole, resumed = newest_state(folder, "prm"), newest_state(other, "prm")
  for name, value in whole.items():
    np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_done_is_done_and_other_settings_are_refused(made):
  folder, result = made
  before = (folder / "prm.json").read_bytes()
  assert train_prm(folder, CONFIG) == json.loads(json.dumps(result))
  assert (folder / "prm.json").read_bytes() == before
  with pytest.raises(UserError, match=r"other settings \(steps: 60 there, 61 here\).*--fresh"):
    train_prm(folder, dataclasses.replace(CONFIG, steps=61))


def test_what_is_thrown_away_takes_its_plan_along(tmp_path):
  plans = {"prm": {"edges": [1]}, "verifier": {"edges": []}}
  (tmp_path / "plan.json").write_text(json.dumps(plans))
  (tmp_path / "prm.json").write_text("{}")
  discard(epath.Path(tmp_path))
  assert json.loads((tmp_path / "plan.json").read_text()) == {"verifier": {"edges": []}}
  assert not (tmp_path / "prm.json").exists()


def solved(numbers, target, steps):
  """Whether steps, and others behind them, lead to the target; by trying everything."""
  left = list(numbers)
  for step in steps:
    text, _, result = step.partition("=")
    operator = next((c for c in text if c in "+-*/"), None)
    if operator is None:
      return False
    a, _, b = text.partition(operator)
    try:
      left.remove(int(a)), left.remove(int(b))
    except ValueError:
      return False
    if str(expression.apply(int(a), operator, int(b))) != result:
      return False
    left.append(int(result))
  if len(left) == 1:
    return left == [target]
  for i, j in itertools.permutations(range(len(left)), 2):
    rest = [n for k, n in enumerate(left) if k not in (i, j)]
    for operator in "+-*/":
      result = expression.apply(left[i], operator, left[j])
      if result is not None and solved([*rest, result], target, []):
        return True
  return False


def test_the_oracles_agree_with_trying_everything(made):
  folder, _ = made
  run = jaxzero.load(folder)
  problems = run.engine.task.problems("test", 0, 48)
  found = sample_solutions(run.engine, run.params, problems, 8, seed=0)
  texts = list(texts_of(run, found.texts))
  seen = set()
  for problem in problems:
    steps = run.engine.task.worked_example(problem).steps
    assert run.engine.task.solvable(problem, f"{steps[0]} ;")
    numbers, target = problem.prompt.split("=")
    assert solved(list(map(int, numbers.split())), int(target), steps[:1])
  for row, column, name, solvable, illegal, success in zip(
    found.row, found.column, found.position, found.solvable, found.illegal, found.success,
    strict=True,
  ):  # fmt: skip
    numbers, target = texts[row][0].split("=")
    read = run.tokenizer.render(texts[row][1][:column])
    if name.startswith("step"):
      steps = [step.strip() for step in read.split(";")[:-1]]
      done = len(steps) == 2  # a third step cannot follow
      truth = not done and solved(list(map(int, numbers.split())), int(target), steps)
      assert solvable == truth, (texts[row][0], read)
      seen.add(bool(solvable))
    assert solvable or success == 0, "nothing right comes from where nothing right is left"
    assert not (illegal and solvable)
  assert seen
  grades = made[1]["grades"]
  assert grades["positions"][0]["position"] == "prompt"
  assert grades["positions"][0]["prm"]["auroc"] is None, "every problem has a solution"
  for told in grades["first_error"].values():
    assert 0 <= told["f1"] <= 1 and 0 <= told["threshold"] <= 1


@pytest.mark.parametrize("what", ["nothing", "no games"])
def test_a_run_without_games_is_one_sentence(what, smoke_run, tmp_path, capsys):
  folder = tmp_path / "run"
  if what == "no games":
    shutil.copytree(smoke_run, folder)
    (folder / "results" / "self_play.json").unlink()
  with pytest.raises(SystemExit) as stop:
    main(["prm", str(folder)])
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert stop.value.code == 2 and error.startswith("jaxzero: ") and error.count(". ") == 0
  assert ("no finished self-play" if what == "no games" else "no run at") in error
