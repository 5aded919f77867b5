"""Checkpoints: committed or gone, the same on other devices, damage set aside, never loaded."""

import errno
import functools
import itertools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import threading

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


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, params):
  """A folder with steps 1 and 2, made once; tests copy it."""
  folder = tmp_path_factory.mktemp("checkpoints") / "two"
  for step in (1, 2):
    save(Checkpoints(folder), params, step, accuracy=0.25)
  return folder


def content(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def must_hold(folder, step, params, tiny_model, mesh1):
  loaded = Checkpoints(folder).restore(step, param_targets(tiny_model, VOCAB, mesh1))
  assert loaded["data"] == {"step": step}
  jax.tree.map(np.testing.assert_array_equal, loaded["params"], params)


def test_the_newest_two_and_the_best_are_kept(tmp_path, params):
  kept = Checkpoints(tmp_path, keep_best=True)
  for step, accuracy in ((1, 0.2), (2, 0.6), (3, 0.6), (4, 0.1), (5, 0.1)):
    save(kept, params, step, accuracy)
  assert kept.steps() == [2, 4, 5] and kept.best() == 2 and kept.latest == 5
  assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["2", "4", "5"]


def test_saved_on_one_device_it_loads_on_eight_bit_for_bit(two_steps, tiny_model, params, mesh8):
  loaded = Checkpoints(two_steps).restore(2, param_targets(tiny_model, VOCAB, mesh8))
  assert loaded["data"] == {"step": 2} and loaded["meta"] == {"note": 3.0}
  jax.tree.map(np.testing.assert_array_equal, loaded["params"], params)
  shardings = param_shardings(tiny_model, VOCAB, mesh8)
  assert jax.tree.map(lambda x: x.sharding, loaded["params"]) == shardings


def test_what_a_killed_save_left_is_never_a_checkpoint_and_other_files_stay(tmp_path, two_steps):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  before = content(folder)
  for name in ("3", "4.orbax-checkpoint-tmp", "notes", "quarantine"):
    (folder / name).mkdir()
    (folder / name / "file").write_text("x")
  (folder / ".digest-3.json.0a.tmp").write_text("{")
  saved = Checkpoints(folder)
  assert saved.steps() == [1, 2] and saved.latest_good() == 2
  assert saved.leftovers() == [".digest-3.json.0a.tmp", "3", "4.orbax-checkpoint-tmp"]
  saved.remove_uncommitted()
  assert set(content(folder)) == {*before, "notes/file", "quarantine/file"}


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
  assert saved.steps() == [1, 2]


def test_another_architecture_is_named_by_its_first_parameter_with_both_shapes(
  two_steps, tiny_model, params, mesh1
):
  saved = Checkpoints(two_steps)
  with pytest.raises(UserError, match=r"no checkpoint of step 5 .*: \[1, 2\]"):
    saved.check(5)
  other = param_targets(tiny_model, VOCAB + 8, mesh1)
  different = [
    name
    for name, shape in sorted(checkpoints_lib._shapes(params).items())
    if checkpoints_lib._shapes(other)[name] != shape
  ]
  there, here = (checkpoints_lib._shapes(tree)[different[0]] for tree in (params, other))
  with pytest.raises(UserError) as caught:
    saved.restore(2, other)
  assert f"({different[0]} is {there} there and {here} here)" in str(caught.value)
  with pytest.raises(UserError, match=r"extra is missing there and \[3\] here"):
    saved.restore(2, {**params, "extra": np.zeros(3)})


CALLS = ("replace", "rename", "fsync", "unlink", "remove", "rmdir", "mkdir")


def watched(monkeypatch, before):
  """Calls `before(name)` ahead of everything that changes a disk from Python."""
  lock = threading.RLock()

  def watch(name, real):
    @functools.wraps(real)
    def call(*args, **kwargs):
      with lock:
        before(name)
        return real(*args, **kwargs)

    return call

  for name in CALLS:
    monkeypatch.setattr(os, name, watch(name, getattr(os, name)))


def test_killed_at_any_moment_of_a_save_the_newest_good_step_is_the_old_or_the_new_one(
  tmp_path, two_steps, tiny_model, params, mesh1, monkeypatch
):
  # What lies on the disk before each change is what a kill there would leave.
  folder, states = shutil.copytree(two_steps, tmp_path / "x"), []

  def keep(name):
    if not inside:
      inside.append(name)
      state = tmp_path / f"{len(states)}-{name}"
      while not state.exists():  # TensorStore's own threads may change it while it is copied
        try:
          shutil.copytree(folder, state)
        except shutil.Error:
          shutil.rmtree(state)
      states.append(state)
      inside.clear()

  inside: list[str] = []
  with monkeypatch.context() as patch:
    watched(patch, keep)
    save(Checkpoints(folder), params, 3)
  assert {state.name.split("-")[1] for state in states} >= {"replace", "rename", "fsync", "mkdir"}
  outcomes = []
  for state in states:
    saved = Checkpoints(state)
    outcomes.append(saved.latest_good())
    saved.remove_uncommitted()
    assert set(os.listdir(state)) - {".lock"} == {
      name for step in saved.steps() for name in (str(step), f"digest-{step}.json")
    }, state
  assert outcomes == sorted(outcomes) and set(outcomes) == {2, 3}
  for number in (outcomes.index(3) - 1, outcomes.index(3), len(states) - 1):
    must_hold(states[number], outcomes[number], params, tiny_model, mesh1)
  assert not (folder / "quarantine").exists()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("call", ["replace", "rename", "fsync", "mkdir"])
def test_a_disk_that_fails_on_the_way_keeps_the_old_step(
  tmp_path, two_steps, params, monkeypatch, code, call
):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  before = content(folder)

  def fail(name):
    if name == call:
      raise OSError(code, os.strerror(code))

  with monkeypatch.context() as patch:
    watched(patch, fail)
    with pytest.raises(UserError, match="cannot write"):
      save(Checkpoints(folder), params, 3)
  saved = Checkpoints(folder)
  assert saved.latest_good() == 2
  saved.remove_uncommitted()
  assert content(folder) == before


def test_a_step_saved_again_never_counts_with_mixed_files(tmp_path, two_steps, params, monkeypatch):
  folder = shutil.copytree(two_steps, tmp_path / "x")

  def fail(name):
    if name == "mkdir":
      raise OSError(errno.EIO, os.strerror(errno.EIO))

  with monkeypatch.context() as patch:
    watched(patch, fail)
    with pytest.raises(UserError):
      save(Checkpoints(folder), params, 2)
  assert Checkpoints(folder).steps() == [1]
  save(Checkpoints(folder), params, 2)
  assert Checkpoints(folder).latest_good() == 2


def damages(data):
  """Bit flips all over, cuts, and one byte too many."""
  random = np.random.default_rng(len(data))
  for offset in {0, len(data) - 1, *random.integers(len(data), size=6).tolist()}:
    yield data[:offset] + bytes([data[offset] ^ 1 << random.integers(8)]) + data[offset + 1 :]
  yield from (data[: len(data) // 2], data[:-1], b"", data + b"\0")


def test_every_damaged_file_of_a_step_is_found(tmp_path, two_steps):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  names = [name for name in content(folder) if name.startswith("2/")]
  assert len(names) > 10
  for name in names:
    data = (folder / name).read_bytes()
    for damage in damages(data) if data else [b"x"]:
      (folder / name).write_bytes(damage)
      assert Checkpoints(folder).damage(2) == f"is damaged: {name[2:]} is altered"
    (folder / name).unlink()
    assert Checkpoints(folder).damage(2) == f"is damaged: {name[2:]} is missing"
    (folder / name).write_bytes(data)
  assert Checkpoints(folder).damage(2) is None


def test_every_flipped_bit_of_a_digest_is_found(tmp_path, two_steps):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  path = folder / "digest-2.json"
  data = path.read_bytes()
  for offset in range(len(data)):
    broken = data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
    path.write_bytes(broken)
    assert Checkpoints(folder).damage(2) is not None, (offset, data[offset : offset + 20])


@pytest.mark.parametrize("victim", ["params", "digest", "folder"])
def test_a_damaged_newest_step_is_set_aside_with_its_reason_and_the_older_one_loads(
  tmp_path, two_steps, tiny_model, params, mesh1, victim
):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  if victim == "folder":
    shutil.rmtree(folder / "2")
  else:
    pattern = "2/params/d/*" if victim == "params" else "digest-2.json"
    path = next(folder.glob(pattern))
    path.write_bytes(path.read_bytes()[:-1])
  with pytest.raises(UserError, match=r"digest-2\.json.*\(\[1\]\)"):
    Checkpoints(folder).check(2)
  saved = Checkpoints(folder)
  with pytest.warns(UserWarning, match=r"the checkpoint .*2 .*; it was set aside") as warned:
    assert saved.latest_good() == 1
  assert len(warned) == 1 and saved.steps() == [1]
  note = (folder / "quarantine" / "2.reason.txt").read_text()
  assert note.startswith("step 2 ") and (folder / "quarantine" / "digest-2.json").exists()
  must_hold(folder, 1, params, tiny_model, mesh1)
  save(saved, params, 2)
  assert saved.latest_good() == 2


def test_where_every_step_is_damaged_there_is_none(tmp_path, two_steps):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  for path in folder.glob("*/params/_METADATA"):
    path.write_bytes(b"")
  with pytest.warns(UserWarning, match="_METADATA is altered; it was set aside"):
    assert Checkpoints(folder).latest_good() is None
  assert Checkpoints(folder).steps() == []


def test_a_digest_without_a_checksum_of_its_own_is_still_read(tmp_path, two_steps):
  folder = shutil.copytree(two_steps, tmp_path / "x")
  lines = (folder / "digest-2.json").read_text().splitlines()
  old = "\n".join(line for line in lines if not line.startswith(' "sha256"'))
  (folder / "digest-2.json").write_text(old)
  assert Checkpoints(folder).latest_good() == 2


@pytest.fixture
def in_bucket(gcs, two_steps):
  """The two steps, copied to a bucket by hand."""
  for name, data in content(two_steps).items():
    gcs.put(f"run/checkpoints/{name}", data)
  return Checkpoints("gs://bucket/run/checkpoints")


def test_a_local_run_copied_to_a_bucket_is_checked_by_its_own_digest(gcs, in_bucket):
  assert in_bucket.latest_good() == 2
  gcs.put("run/checkpoints/2/params/_METADATA", b"{}")
  assert in_bucket.damage(2) == "is damaged: params/_METADATA is altered"


def test_orbax_writes_to_a_bucket_through_faults_and_damage_there_is_set_aside(
  gcs, in_bucket, tmp_path, tiny_model, params, mesh1
):
  faults = itertools.chain(("503", "cut", "lost"), itertools.cycle(("503", "cut")))
  number = 0

  def every_seventh(method, url):
    nonlocal number
    number += method == "POST"
    return next(faults) if method == "POST" and number % 7 == 0 else None

  gcs.faults = every_seventh
  save(in_bucket, params, 3)
  gcs.reset_faults()
  assert all(gcs.requests["POST", fault] for fault in ("503", "cut", "lost"))
  assert in_bucket.steps() == [2, 3] and not any("/1/" in name for name in gcs.objects)
  must_hold(in_bucket.folder, 3, params, tiny_model, mesh1)
  for name, data in gcs.objects.items():  # copied by hand, it is checked by the same digest
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  assert Checkpoints(tmp_path / "run" / "checkpoints").latest_good() == 3

  name = next(name for name in gcs.objects if "checkpoints/3/params/d/" in name)
  gcs.put(name, gcs.objects[name][:-1] + b"?")
  gcs.put("run/checkpoints/4/params/d/x", b"half")
  again = Checkpoints(in_bucket.folder)
  with pytest.warns(UserWarning, match=r"checkpoints/3 is damaged: params/d/.* is altered"):
    assert again.latest_good() == 2
  assert "run/checkpoints/quarantine/3.reason.txt" in gcs.objects
  assert gcs.objects[name.replace("/3/", "/quarantine/3/")].endswith(b"?")
  again.remove_uncommitted()
  assert not any("checkpoints/4/" in name for name in gcs.objects)


@pytest.mark.parametrize(
  "fault, sentence", [("403", "permission denied"), ("507", "storage quota")]
)
def test_a_bucket_that_refuses_is_one_sentence_before_orbax_starts(
  gcs, in_bucket, params, fault, sentence
):
  gcs.fail_times(99, fault, "POST")
  before = dict(gcs.objects)
  with pytest.raises(UserError, match=rf"^cannot use gs://bucket/run/checkpoints.*{sentence}"):
    save(in_bucket, params, 3)
  assert gcs.objects == before


@pytest.mark.parametrize("allowed", [2, 9])
def test_a_bucket_that_refuses_on_the_way_keeps_the_old_steps(gcs, in_bucket, params, allowed):
  number = 0

  def faults(method, url):
    nonlocal number
    number += method == "POST"
    return "403" if method == "POST" and number > allowed else None

  before = dict(gcs.objects)
  gcs.faults = faults
  with pytest.raises(UserError, match=r"^cannot use gs://bucket/run/checkpoints: permission"):
    save(in_bucket, params, 3)
  gcs.reset_faults()
  again = Checkpoints(in_bucket.folder)
  assert again.latest_good() == 2
  again.remove_uncommitted()
  assert gcs.objects == before


def test_two_hosts_share_the_hashing_and_agree_on_what_is_damaged(tmp_path):
  root = pathlib.Path(__file__).parents[1]
  launcher = [sys.executable, str(root / "launch" / "local_multiprocess.py")]
  hosts = ["--processes", "2", "--devices-per-process", "2", "--module", "tests.hosts_save"]
  done = subprocess.run(
    [*launcher, *hosts, "--", str(tmp_path)],
    cwd=root,
    env={**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"},
    capture_output=True,
    text=True,
    timeout=120,
  )
  rows = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if "] {" in line]
  assert len(rows) == 2, done.stdout + done.stderr
  hashed = [row.pop("hashed") for row in rows]
  assert rows[0] == rows[1]
  ids = [f"7-0-{number}" for number in range(4)]
  assert rows[0] == {"latest": 1, "good": True, "steps": [1], "ids": ids}
  files_of_a_step = len(content(tmp_path / "checkpoints" / "1"))
  assert sum(hashed) == 2 * files_of_a_step and abs(hashed[0] - hashed[1]) <= 2
