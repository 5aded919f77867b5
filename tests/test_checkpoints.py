"""Checkpoints: committed or gone, the same on other devices, damage named."""

import jax
import numpy as np
import pytest

from jaxzero import checkpoints as checkpoints_lib
from jaxzero import files
from jaxzero.checkpoints import Checkpoints
from jaxzero.errors import UserError
from jaxzero.models.transformer import init_params, param_shardings, param_targets

VOCAB = 64


@pytest.fixture(scope="module")
def params(tiny_model):
  return init_params(tiny_model, VOCAB, jax.random.key(0))


def save(checkpoints, params, step, accuracy=0.0):
  moments = jax.tree.map(lambda x: x * 0.5, params)
  checkpoints.save(step, params, moments, {"step": step}, {"note": step * 1.5}, accuracy)


def test_the_newest_and_the_best_are_kept(tmp_path, params):
  kept = Checkpoints(tmp_path, keep_best=True)
  for step, accuracy in ((1, 0.2), (2, 0.6), (3, 0.6), (4, 0.1)):
    save(kept, params, step, accuracy)
  assert kept.steps() == [2, 4] and kept.best() == 2 and kept.latest == 4
  assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "4"]


def test_saved_on_one_device_it_loads_on_eight_bit_for_bit(tmp_path, tiny_model, params, mesh8):
  saved = Checkpoints(tmp_path)
  save(saved, params, 7)
  loaded = saved.restore(7, param_targets(tiny_model, VOCAB, mesh8))
  assert loaded["data"] == {"step": 7} and loaded["meta"] == {"note": 10.5}
  jax.tree.map(np.testing.assert_array_equal, loaded["params"], params)
  shardings = param_shardings(tiny_model, VOCAB, mesh8)
  assert jax.tree.map(lambda x: x.sharding, loaded["params"]) == shardings


def test_what_a_killed_save_left_is_never_a_checkpoint(tmp_path, params):
  saved = Checkpoints(tmp_path)
  save(saved, params, 1)
  (tmp_path / "2").mkdir()
  (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
  assert saved.steps() == [1]
  saved.remove_uncommitted()
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "digest-1.json"]


def test_a_full_disk_is_told_before_anything_is_written(tmp_path, params, monkeypatch):
  saved = Checkpoints(tmp_path)
  save(saved, params, 1)
  monkeypatch.setattr(files, "_free_bytes", lambda path: 1000)
  with pytest.raises(UserError, match=r"disk is full \(\d+ bytes are needed and 1000 bytes are"):
    save(saved, params, 2)
  assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "digest-1.json"]
  size = 2 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
  room = size + checkpoints_lib._OVERHEAD_BYTES
  monkeypatch.setattr(files, "_free_bytes", lambda path: room)
  save(saved, params, 2)
  assert saved.steps() == [2]


def test_another_models_shapes_and_a_missing_step_are_one_sentence(tmp_path, tiny_model, mesh1):
  saved = Checkpoints(tmp_path)
  with pytest.raises(UserError, match="no checkpoint of step 5"):
    saved.check(5)
  save(saved, init_params(tiny_model, VOCAB, jax.random.key(0)), 5)
  with pytest.raises(UserError, match="does not fit this model"):
    saved.restore(5, param_targets(tiny_model, VOCAB + 8, mesh1))
