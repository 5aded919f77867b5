"""The replay store in a bucket: what is acknowledged is there once, whatever fails on the way."""

import json

import pytest
from test_replay import content, episodes, expected, staged

from jaxzero.errors import UserError
from jaxzero.selfplay.replay import ReplayStore

FOLDER = "gs://bucket/run/episodes"


def filled(rounds=2):
  store = ReplayStore(FOLDER)
  for round in range(rounds):
    store.write(round, episodes(round))
  return store


def shards(gcs):
  return sorted(name for name in gcs.objects if name.endswith(".arrayrecord"))


def test_it_is_the_same_store_as_on_a_disk(gcs, tmp_path):
  store, local = filled(3), ReplayStore(tmp_path)
  for round in range(3):
    local.write(round, episodes(round))
  assert {n.split("/")[-1]: d for n, d in gcs.objects.items()} == {
    path.name: path.read_bytes() for path in tmp_path.iterdir()
  }
  assert content(ReplayStore(FOLDER)) == content(local)
  assert list(store.window(2, 2)) == list(local.window(2, 2))
  assert store.discard_after(0) == [1, 2] and len(shards(gcs)) == 1


def test_hosts_upload_their_parts_and_one_manifest_commits_them(gcs):
  store, other = filled(1), ReplayStore(FOLDER, primary=False)
  parts = staged(FOLDER, 1, 2)
  assert len(shards(gcs)) == 3 and ReplayStore(FOLDER, read_only=True).rounds == [0]
  store.commit(1, parts)
  other.refresh()
  assert content(other) == expected(0, 1)
  staged(FOLDER, 2, 2)
  assert content(ReplayStore(FOLDER)) == expected(0, 1) and len(shards(gcs)) == 3


@pytest.mark.parametrize("fault", ["403", "507", "half", "cut", "lost"])
@pytest.mark.parametrize("object_", ["manifest", "arrayrecord"])
def test_an_upload_that_fails_loses_and_doubles_nothing(gcs, fault, object_):
  store = filled(2)

  def faults(method, url):
    # Of a small upload the name is in the body: the shard is the first one, the manifest the second
    number = sum(count for (used, _), count in gcs.requests.items() if used == "POST")
    wanted = number == 0 if object_ == "arrayrecord" else number >= 1
    return fault if method == "POST" and wanted else None

  gcs.requests.clear()
  gcs.faults = faults
  passes = object_ == "arrayrecord" and fault in ("half", "cut", "lost")  # one retry is enough
  if passes:
    store.write(2, episodes(2))
  else:
    with pytest.raises(UserError, match=r"^cannot use gs://bucket/run/episodes/"):
      store.write(2, episodes(2))
  gcs.reset_faults()
  again = ReplayStore(FOLDER)
  # The last answer lost, the manifest may be the new one: then the round is there, once.
  assert content(again) == expected(*again.rounds) and again.rounds in ([0, 1], [0, 1, 2])
  assert again.rounds == [0, 1, 2] or not passes
  if 2 not in again.rounds:
    again.write(2, episodes(2))
  assert content(ReplayStore(FOLDER)) == expected(0, 1, 2) and len(shards(gcs)) == 3


def test_a_damaged_object_is_quarantined_with_its_reason_and_an_outage_is_no_damage(gcs):
  store = filled(3)
  name = shards(gcs)[1]
  good = gcs.objects[name]
  for number, broken in enumerate((good[:-1], b"", good[:50] + bytes([good[50] ^ 4]) + good[51:])):
    gcs.put(name, broken)
    (sentence,) = store.verify()
    assert "has sha256" in sentence and content(ReplayStore(FOLDER)) == expected(0, 2)
    aside = name.replace("episodes/", "episodes/quarantine/")
    assert gcs.objects[aside] == broken and name not in gcs.objects
    assert b" instead of " in gcs.objects[f"{aside}.reason.txt"]
    manifest = json.loads(gcs.objects["run/episodes/manifest.json"])
    assert len(manifest["quarantined"]) == number + 1
    store.write(1, episodes(1))
  gcs.fail_times(999, "503", "GET")
  with pytest.raises(UserError, match="does not answer"):
    store.verify()
  gcs.reset_faults()
  assert store.verify() == [] and content(store) == expected(0, 1, 2)


def test_a_damaged_object_is_never_read_from_the_bucket(gcs):
  filled(3)
  gcs.put(shards(gcs)[2], b"torn")
  store = ReplayStore(FOLDER, read_only=True)
  before = dict(gcs.objects)
  with pytest.warns(UserWarning, match="round 2"):
    assert list(store.window(2, 2)) == expected(1)[1]
  assert gcs.objects == before
