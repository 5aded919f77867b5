"""Files in a bucket: whole or not at all under every fault, and no wrong byte from the cache."""

import hashlib
import os
import tempfile

import pytest

from jaxzero import files
from jaxzero.errors import UserError
from jaxzero.files import (
  DamagedError,
  as_path,
  cached,
  move,
  read_bytes,
  read_jsonl,
  remove,
  replacing,
  set_aside,
  tree,
  write_atomic,
  write_jsonl,
)

PATH = "gs://bucket/run/file"
LARGE = bytes(range(256)) * (6 << 12)  # above gcsfs's 5 MiB for an upload in one request


@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n--", "äöü", LARGE])
def test_what_is_written_is_read_and_nothing_else_is_left(gcs, data, tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  gcs.put("run/file", b"older")
  write_atomic(PATH, data)
  data = data.encode() if isinstance(data, str) else data
  assert read_bytes(PATH) == data and gcs.objects == {"run/file": data}
  assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("data", [b"new", LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fault", ["503", "429", "cut", "half", "lost"])
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_what_passes_is_tried_again_and_the_object_is_the_same(gcs, data, fault, method):
  gcs.put("run/file", b"old")
  gcs.fail_times(2, fault, method)
  write_atomic(PATH, data)
  assert read_bytes(PATH) == data and gcs.objects == {"run/file": data}
  assert gcs.requests[method, fault] == 2


@pytest.mark.parametrize("data", [b"new", LARGE], ids=["small", "large"])
@pytest.mark.parametrize(
  "fault, sentence",
  [
    ("503", "the store does not answer"),
    ("half", "the store does not answer"),
    ("403", "permission denied; give"),
    ("401", "no valid credentials"),
    ("429", "the bucket's request quota is used up"),
    ("507", "the bucket's storage quota is used up"),
  ],
)
def test_what_does_not_pass_leaves_the_old_object_and_is_one_sentence(gcs, data, fault, sentence):
  gcs.put("run/file", b"old")
  gcs.fail_times(99, fault, "POST")
  with pytest.raises(UserError, match=rf"^cannot use gs://bucket/run/file: {sentence}[^.]*\.$"):
    write_atomic(PATH, data)
  assert gcs.objects == {"run/file": b"old"}
  gcs.fail_times(99, fault, "GET")
  with pytest.raises(UserError, match=rf"^cannot use gs://bucket/run/file: {sentence}[^.]*\.$"):
    read_bytes(PATH)


def test_an_upload_of_many_parts_that_fails_half_way_leaves_the_old_object(gcs, monkeypatch):
  gcs.put("run/file", b"old")
  gcs.fail_times(99, "503", "POST", "upload_id")
  with pytest.raises(UserError, match="does not answer"):
    write_atomic(PATH, LARGE)
  assert gcs.objects == {"run/file": b"old"}


def test_a_missing_bucket_and_a_missing_object_are_told_apart(gcs):
  with pytest.raises(UserError, match="cannot use gs://nowhere/x: there is no such bucket"):
    write_atomic("gs://nowhere/x", b"")
  with pytest.raises(FileNotFoundError):
    read_bytes("gs://bucket/missing")
  assert read_jsonl("gs://bucket/missing") == []


def test_a_body_that_raises_uploads_nothing(gcs):
  with pytest.raises(KeyError), replacing(PATH) as temporary:
    temporary.write_bytes(b"half")
    raise KeyError
  assert gcs.objects == {}


def test_json_lines_and_folders_work_as_on_a_disk(gcs, tmp_path):
  rows = [{"step": 1}, {"step": 2}]
  found = []
  for root in (as_path("gs://bucket/run"), as_path(tmp_path)):
    write_jsonl(root / "rows", rows)
    assert read_jsonl(root / "rows") == rows
    for name in ("a", "b"):
      files.make_folder(root / "step" / "deep")
      write_atomic(root / "step" / "deep" / name, name)
    set_aside(root / "step", root / "quarantine", "torn.\n")
    set_aside(root / "rows", root / "quarantine", "altered.\n")
    set_aside(root / "rows", root / "quarantine", "missing.\n")
    found.append(tree(root))
    move(root / "quarantine" / "rows", root / "rows")
    remove(root / "quarantine")
    remove(root / "quarantine")
    assert list(tree(root)) == ["rows"]
  assert found[0] == found[1]
  assert sorted(found[0]) == [
    "quarantine/rows",
    "quarantine/rows.reason.txt",
    "quarantine/step.reason.txt",
    "quarantine/step/deep/a",
    "quarantine/step/deep/b",
  ]


@pytest.mark.parametrize("data", [b"x" * 1000, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("fault", ["503", "cut", "half", "lost"])
def test_a_download_that_breaks_is_repeated_and_cached_whole(gcs, data, fault):
  gcs.put("run/file", data)
  sha256 = hashlib.sha256(data).hexdigest()
  gcs.fail_times(2, fault, "GET", "alt=media")
  assert cached(PATH, sha256).read_bytes() == data
  asked = sum(gcs.requests.values())
  assert cached(PATH, sha256).read_bytes() == data and sum(gcs.requests.values()) == asked


def test_the_cache_never_gives_other_bytes_than_asked_for(gcs):
  data = b"x" * 1000
  sha256 = hashlib.sha256(data).hexdigest()
  gcs.put("run/file", data)
  local = cached(PATH, sha256)
  for broken in (data[:-1], b"", b"y" + data[1:]):
    local.write_bytes(broken)
    assert cached(PATH, sha256).read_bytes() == data  # damage here: downloaded again
    gcs.put("run/file", broken)
    assert cached(PATH, sha256).read_bytes() == data  # damage there: not needed
    with pytest.raises(DamagedError, match="instead of"):
      cached(PATH, sha256, fresh=True)
    local.unlink()
    with pytest.raises(DamagedError, match="instead of"):
      cached(PATH, sha256)
    assert os.listdir(local.parent) == []
    gcs.put("run/file", data)
    cached(PATH, sha256)
  gcs.objects.clear()
  with pytest.raises(FileNotFoundError):
    cached(PATH, sha256, fresh=True)


def test_what_was_used_longest_ago_makes_room(gcs, monkeypatch):
  monkeypatch.setattr(files, "_CACHE_BYTES", 2500)
  made = []
  for number in range(4):
    data = bytes([number]) * 1000
    gcs.put(f"run/{number}", data)
    made.append(cached(f"gs://bucket/run/{number}", hashlib.sha256(data).hexdigest()))
    os.utime(made[-1], (number, number))
  assert [path.exists() for path in made] == [False, False, True, True]
  os.utime(made[2])  # both were used within the hour: the bound waits
  os.utime(made[3])
  gcs.put("run/file", b"y" * 1000)
  cached(PATH, hashlib.sha256(b"y" * 1000).hexdigest())
  assert [path.exists() for path in made] == [False, False, True, True]
