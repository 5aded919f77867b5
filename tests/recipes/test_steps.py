"""The steps of a stage: where they stop, what is kept then, and that nothing else depends on it."""

import dataclasses
import json

import jax.numpy as jnp
import pytest

from benchmarks import fault_points
from jaxzero.errors import Preempted, UserError
from jaxzero.learn.guard import batch_hash, to_hex
from jaxzero.learn.supervised import Examples
from jaxzero.parallel import preemption
from jaxzero.recipes import run as run_lib
from jaxzero.recipes import stages
from jaxzero.recipes.run import Run

CONFIG = fault_points.config()  # 6 supervised steps, validated and saved after each 3


@pytest.fixture
def trained(tmp_path, monkeypatch, mesh1):
  """Trains a run in a folder on one device: the losses that it sees are those of `losses`."""
  monkeypatch.setattr(run_lib, "make_mesh", lambda _: mesh1)
  monkeypatch.setattr(stages, "validate", lambda *_: 0.5)
  monkeypatch.setattr(stages, "load_params", lambda *_, **__: {})

  def train(folder, config=CONFIG, losses=lambda step: 1.0):
    class Trainer(fault_points.Trainer):
      def train_step(self, state, batch, reference):
        state, metrics = super().train_step(state, batch, reference)
        return state, {**metrics, "loss": jnp.float32(losses(int(state.step)))}

    monkeypatch.setattr(stages, "Trainer", Trainer)
    with Run(tmp_path / folder, config) as run:
      stages.fit_supervised(run, "pretrain")
      return run

  return train


def digests(run):
  return sorted(path.name for path in (run / "checkpoints/pretrain").glob("digest-*.json"))


@pytest.mark.parametrize(("loss", "word"), [(jnp.nan, "is nan"), (jnp.inf, "is inf")])
def test_a_loss_that_is_no_number_names_step_batch_and_checkpoint(trained, tmp_path, loss, word):
  with pytest.raises(UserError) as error:
    trained("run", losses=lambda step: loss if step == 5 else 1.0)
  sentence = str(error.value)
  assert f"step 5 {word}" in sentence and "checkpoints/pretrain/3" in sentence
  with Run(tmp_path / "other", CONFIG) as run:
    examples = Examples(run.worked_examples, CONFIG.context, 1, seed=1)
    hashed = to_hex(batch_hash(vars(examples.batch(4, 4)), range(4)))
  assert hashed in sentence, "the batch of the fifth step"
  assert digests(tmp_path / "run") == ["digest-3.json"], "the last good one is kept, no other"
  run = trained("run")
  assert [row["step"] for row in run.metrics] == [3, 6], "the same command retries from it"


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5, 6, 7, 8])
def test_stopped_at_any_point_it_goes_on_with_the_same_batches(
  trained, tmp_path, monkeypatch, stop
):
  whole = trained("whole")
  points = iter(range(1, 100))
  with monkeypatch.context() as patch:
    patch.setattr(preemption, "reached", lambda: next(points) >= stop)
    with pytest.raises(Preempted):
      trained("run")
  run = trained("run")
  clocks = {"time"}
  assert [{k: v for k, v in row.items() if k not in clocks} for row in run.metrics] == [
    {k: v for k, v in row.items() if k not in clocks} for row in whole.metrics
  ]
  assert run.ledger["pretrain"]["flops"] == whole.ledger["pretrain"]["flops"]
  assert len({row["batch_hash"] for row in run.metrics}) == 2


def test_the_layout_may_change_and_what_is_computed_may_not(trained, tmp_path):
  trained("run")
  other = dataclasses.replace(CONFIG.model, remat="full", scan_layers=True)
  trained("run", dataclasses.replace(CONFIG, model=other, spike_factor=20.0))
  assert json.loads((tmp_path / "run/config.json").read_text())["spike_factor"] == 20.0
  with pytest.raises(UserError, match=r"another config \(differs in seed: 0 there, 1 here"):
    trained("run", dataclasses.replace(CONFIG, seed=1))
