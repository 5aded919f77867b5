"""The reward model learns labels that depend on what a step says, and reads the right positions."""

import types

import jax
import numpy as np
import pytest

from jaxzero.learn.losses import LossConfig
from jaxzero.learn.reward import LabelledSteps, StepScorer, cross_entropy
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.selfplay.labels import StepLabels

pytestmark = pytest.mark.usefixtures("quick_compiles")
VOCAB, PROMPT, LONGEST, STEP, ROWS = 16, 4, 8, 1, 256
TOKENIZER = types.SimpleNamespace(step_id=STEP, end_id=0)


@pytest.fixture(scope="module")
def labels():
  """Completions [fact, other, STEP, ...]: nine of ten end right behind an even fact, one behind an
  odd one."""
  random = np.random.default_rng(0)
  tokens = random.integers(2, VOCAB, (ROWS, LONGEST)).astype(np.int32)
  tokens[:, 2] = STEP
  success = np.full((ROWS, LONGEST + 1), np.nan, np.float32)
  success[:, 0] = 0.5
  success[:, 3] = np.where(tokens[:, 0] % 2 == 0, 0.9, 0.1)
  return StepLabels(
    prompts=random.integers(2, VOCAB, (ROWS, PROMPT)).astype(np.int32),
    prompt_length=random.integers(2, PROMPT + 1, ROWS).astype(np.int32),
    tokens=tokens,
    length=random.integers(3, LONGEST + 1, ROWS).astype(np.int32),
    success=success,
    right=np.zeros(ROWS, bool),
    lost=np.full(ROWS, LONGEST + 1, np.int32),
  )


@pytest.fixture(scope="module")
def scorer(tiny_model, mesh8):
  return StepScorer(tiny_model, VOCAB, mesh8, batch_size=100)


def test_training_beats_a_constant_and_nears_the_labels_own_entropy(
  labels, scorer, tiny_model, mesh8
):
  optimizer = OptimizerConfig(learning_rate=1e-2, warmup_steps=5)
  loss = LossConfig(value_weight=1.0, policy_weight=0.0)
  trainer = Trainer(tiny_model, VOCAB, optimizer, loss, mesh8, 60)
  examples = LabelledSteps(labels, PROMPT + LONGEST, 0, TOKENIZER)
  state = trainer.init(jax.random.key(0))
  losses = []
  for step in range(60):
    state, metrics = trainer.train_step(state, examples.batch(step, 64, range(64)))
    losses.append(float(metrics["value_loss"]))
  known = np.isfinite(labels.success)
  constant = np.full_like(labels.success, labels.success[known].mean())
  floor = cross_entropy(np.nan_to_num(labels.success), labels)
  loss = cross_entropy(scorer(state.params, labels), labels)
  assert losses[-1] < losses[0] and floor < loss < floor + 0.05
  assert loss < cross_entropy(constant, labels) - 0.1


def test_scores_are_those_of_each_row_alone(labels, scorer, tiny_model, mesh8):
  trainer = Trainer(tiny_model, VOCAB, OptimizerConfig(), LossConfig(), mesh8, 1)
  params = trainer.init(jax.random.key(1)).params
  params["value"] = jax.random.normal(jax.random.key(2), params["value"].shape)
  scores = scorer(params, labels)
  assert scores.shape == (ROWS, LONGEST + 1)
  some = [3, 250]
  fewer = StepLabels(**{name: array[some] for name, array in vars(labels).items()})
  np.testing.assert_allclose(scorer(params, fewer), scores[some], atol=1e-5)
  changed = StepLabels(**{**vars(labels), "tokens": labels.tokens.copy()})
  changed.tokens[:, 4:] = 5
  np.testing.assert_allclose(scorer(params, changed)[:, :5], scores[:, :5], atol=1e-5)
  assert (scorer(params, changed)[:, 5:] != scores[:, 5:]).mean() > 0.9, "column e: e tokens read"
