"""A student's batches: what is in them, and that nobody else decides it."""

import dataclasses

import numpy as np
import pytest
from trees import worked_episode

from jaxzero.errors import UserError
from jaxzero.learn.lessons import DistillConfig, Lessons, translate, verified
from jaxzero.learn.teacher import Target
from jaxzero.tasks.transcript import encode_prompt, grade
from jaxzero.tokenizers import Tokenizer

LENGTH, A = 46, 4


@pytest.fixture(scope="module")
def episodes(task, tokenizer):
  return [worked_episode(task, tokenizer, number, right=number % 2 == 0) for number in range(6)]


def lessons(episodes, task):
  config = DistillConfig(targets="paths", batch_size=16, supervised_share=0.25)
  texts = [(one.prompt.tolist(), one.tokens.tolist()) for one in verified(episodes, task)]
  return Lessons(config, texts[:2], episodes, texts, None, LENGTH)


def test_every_right_end_is_learned_from_once(episodes, task, tokenizer):
  found = verified([*episodes, *episodes], task)
  assert len(found) == len(episodes)
  for one, source in zip(found, episodes, strict=True):
    assert grade(task, tokenizer, one.problem, one.tokens).right
    np.testing.assert_array_equal(one.tokens, source.harvested)
    np.testing.assert_array_equal(one.tree.token[one.nodes], one.tokens)


def test_rows_are_worked_examples_then_values_then_completions(episodes, task):
  made = lessons(episodes, task)
  assert (made.supervised, made.played) == (4, 2)
  batch = made.batch(3, range(16))
  has_policy, has_value = batch.hard_weight.any(axis=1), batch.value_weight.any(axis=1)
  np.testing.assert_array_equal(has_value, np.isin(np.arange(16), [4, 5]))
  np.testing.assert_array_equal(has_policy, ~has_value)


@pytest.mark.parametrize("kind, hard", [("paths", 1.0), ("both", 0.5), ("trees", 0.0)])
def test_a_position_counts_the_same_whatever_its_target(episodes, task, kind, hard):
  H = [len(one.tokens) for one in verified(episodes, task)]
  random = np.random.default_rng(0)
  targets = [
    Target(
      np.array([random.permutation(9)[:A] for _ in range(h)], np.int32),
      random.dirichlet(np.ones(A + 1), h).astype(np.float32),
    )
    for h in H
  ]
  config = DistillConfig(targets=kind, batch_size=16, supervised_share=0.0)
  texts = [(one.prompt.tolist(), one.tokens.tolist()) for one in verified(episodes, task)]
  soft = None if kind == "paths" else targets
  batch = Lessons(config, texts, episodes, texts, soft, LENGTH).batch(0, range(2, 16))
  there = np.arange(LENGTH) < batch.length[:, None] - 1
  completion = there & (batch.hard_weight + batch.soft_weight > 0)
  assert (completion.sum(axis=1) >= min(H)).all()
  np.testing.assert_allclose(batch.hard_weight[completion], hard)
  np.testing.assert_allclose(batch.soft_weight[completion], 1.0 - hard)
  if soft:
    np.testing.assert_allclose(batch.soft_target[completion].sum(axis=1), 1.0, atol=1e-5)
    for row in range(14):  # the target is that of the row's own completion
      P = int(np.argmax(completion[row])) + 1
      tokens = batch.tokens[row, P : batch.length[row]].tolist()
      number = next(n for n, text in enumerate(texts) if text[1] == tokens)
      moves = slice(P - 1, P - 1 + len(tokens))
      np.testing.assert_array_equal(batch.candidates[row, moves], targets[number].candidates)


def test_a_row_depends_on_nothing_but_its_number(episodes, task):
  whole = vars(lessons(episodes, task).batch(5, range(16)))
  again = lessons(episodes, task)
  parts = [vars(again.batch(5, rows)) for rows in ([9, 3], [0, 15])]
  for name, array in whole.items():
    np.testing.assert_array_equal(array[[9, 3]], parts[0][name])
    np.testing.assert_array_equal(array[[0, 15]], parts[1][name])


def test_the_control_learns_worked_examples_alone(task, tokenizer):
  texts = [([1, 5], [6, 2])]
  config = DistillConfig(targets="trees", supervised_share=1.0, batch_size=8)
  assert not config.soft
  batch = Lessons(config, texts, [], [], None, LENGTH).batch(7, range(8))
  assert (batch.tokens[:, :4] == [1, 5, 6, 2]).all() and (batch.hard_weight.sum(axis=1) == 2).all()


def test_another_tokenizer_reads_the_same_text(task, tokenizer, episodes):
  other = Tokenizer.train(["a needle in a haystack"] * 5 + ["1+2=3"], vocab_size=300)
  assert other.fingerprint != tokenizer.fingerprint
  for one in episodes:
    problem = task.parse(one.prompt)
    tokens = translate(one.harvested, tokenizer, other)
    assert grade(task, other, problem, tokens).right
    assert translate(tokens, other, tokenizer) == one.harvested.tolist()
    assert translate(one.prompt_tokens, tokenizer, other) == encode_prompt(other, problem)


@pytest.mark.parametrize(
  "change, message",
  [
    ({"steps": 0}, "--steps 0"),
    ({"batch_size": 0}, "--batch-size 0"),
    ({"nodes": 65_537}, "--nodes 65537"),
    ({"rounds": -1}, "--rounds -1"),
    ({"evaluate_every": 0}, "--evaluate-every 0"),
    ({"supervised_share": 1.5}, "--supervised-share 1.5"),
    ({"supervised_share": float("nan")}, "--supervised-share nan"),
    ({"seed": -1}, "--seed -1"),
  ],
)
def test_a_training_that_cannot_run_is_refused(change, message):
  with pytest.raises(UserError, match=message):
    dataclasses.replace(DistillConfig(), **change).check()
