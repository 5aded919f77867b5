import dataclasses
import functools
import inspect
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from trees import tree_arrays

from jaxzero.errors import UserError
from jaxzero.selfplay import replay
from jaxzero.selfplay.episode import Episode, to_bytes
from jaxzero.selfplay.replay import ReplayStore, ShardInfo


def episodes(round, count=4, A=3):
  random = np.random.default_rng(round)
  made = []
  for number in range(count):
    T = 2 + number
    tokens = np.arange(T, dtype=np.int32)
    made.append(
      Episode(
        episode_id=f"7-{round}-{number}",
        problem_id="p",
        prompt="2 5 6 = 32",
        prompt_tokens=np.arange(4, dtype=np.int32),
        tokens=tokens,
        candidates=np.array([random.permutation(30)[:A] for _ in range(T)], np.int32),
        weights=random.dirichlet(np.ones(A + 1), T).astype(np.float32),
        values=random.random(T).astype(np.float32),
        visit_counts=random.integers(9, size=(T, A)).astype(np.int32),
        right=True,
        truncated=False,
        harvested=tokens,
        forward_tokens=T,
        model_step=round,
        search={"num_simulations": 16},
        **tree_arrays(tokens, right=[tokens]),
      )
    )
  return made


# Forks children that SIGKILL themselves at the k-th durable step of a change, for every k.
CRASHES = """
import os, pathlib, shutil, signal, sys
import numpy as np
from jaxzero.selfplay import replay
from jaxzero.selfplay.episode import Episode
from jaxzero.selfplay.replay import ReplayStore

assert "jax" not in sys.modules
root, change = pathlib.Path(sys.argv[1]), sys.argv[2]
calls, kill = 0, os.kill

def killing(real, at, when, label):
  def call(*args, **kwargs):
    global calls
    calls += 1
    here = calls == at
    if here:
      (root / "last-step").write_text(f"{when} {label}")
    if here and when == "before":
      kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if here and when == "after":
      kill(os.getpid(), signal.SIGKILL)
    return result
  return call

plan = {
  "open": lambda folder: ReplayStore(folder),
  "write": lambda folder: ReplayStore(folder).write(2, episodes(2)),
  "discard": lambda folder: ReplayStore(folder).discard_after(0),
  "verify": lambda folder: ReplayStore(folder).verify(),
}[change]
for when in ("before", "after"):
  for at in range(1, 100):
    folder = root / f"{when}-{at:02d}"
    if change != "open":
      shutil.copytree(root / "start", folder)
    pid = os.fork()
    if pid == 0:
      for label in ("open", "fsync", "replace", "unlink", "mkdir"):
        setattr(os, label, killing(getattr(os, label), at, when, label))
      replay.ArrayRecordWriter = Writer = type("Writer", (replay.ArrayRecordWriter,), {})
      for label in ("write", "close"):
        setattr(Writer, label, killing(getattr(Writer, label), at, when, label))
      plan(folder)
      os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
      print(folder.name, "finished")
      break
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL, (at, status)
    print(folder.name, (root / "last-step").read_text())
"""


def crash_everywhere(root, change):
  """The folders that killed children left, and the step at which each was killed."""
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      inspect.getsource(tree_arrays) + inspect.getsource(episodes) + CRASHES,
      str(root),
      change,
    ],
    capture_output=True,
    text=True,
  )
  assert result.returncode == 0, result.stderr
  lines = [line.split(maxsplit=1) for line in result.stdout.splitlines()]
  assert [steps for _, steps in lines].count("finished") == 2
  return {root / name: steps for name, steps in lines}


def filled(folder, rounds=3):
  store = ReplayStore(folder)
  for round in range(rounds):
    store.write(round, episodes(round))
  return store


def content(store):
  return {r: [to_bytes(e) for e in store.episodes(r)] for r in store.rounds}


def expected(*rounds):
  return {r: [to_bytes(e) for e in episodes(r)] for r in rounds}


def files(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def shard(folder, round):
  return folder / f"episodes-{round:06d}-00000-of-00001.arrayrecord"


def test_what_was_written_is_read_back_after_reopening(tmp_path):
  filled(tmp_path / "new" / "episodes")
  store = ReplayStore(tmp_path / "new" / "episodes")
  assert store.rounds == [0, 1, 2] and len(store) == 12
  assert content(store) == expected(0, 1, 2)
  assert store.verify() == []
  assert all(isinstance(e, Episode) for e in store.episodes(1))
  with pytest.raises(UserError, match=r"no episodes of round 3; its rounds are \[0, 1, 2\]"):
    next(store.episodes(3))


def test_the_same_episodes_make_the_same_bytes(tmp_path):
  filled(tmp_path / "a")
  filled(tmp_path / "b")
  assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_large_shard_is_the_same_bytes_too(tmp_path):
  many = episodes(0, count=60) * 20
  infos = [ReplayStore(tmp_path / name).write(0, many) for name in "ab"]
  assert infos[0] == infos[1] and infos[0].episodes == 1200


def test_a_round_is_committed_once(tmp_path):
  store = filled(tmp_path, 2)
  with pytest.raises(UserError, match=r"round 1 is committed .* with 4 episodes"):
    store.write(1, episodes(1))
  with pytest.raises(UserError, match="round 2, part 0 of 1, with 0 episodes"):
    store.write(2, [])
  assert content(ReplayStore(tmp_path)) == expected(0, 1)


def test_discarded_rounds_are_gone_and_can_be_written_again(tmp_path):
  store, before = filled(tmp_path), files(tmp_path)
  assert store.discard_after(0) == [1, 2]
  assert content(ReplayStore(tmp_path)) == expected(0) and not shard(tmp_path, 1).exists()
  for round in (1, 2):
    store.write(round, episodes(round))
  assert files(tmp_path) == before
  assert store.discard_after(5) == [] and store.discard_after(-1) == [0, 1, 2]


def test_leftovers_of_a_killed_writer_are_removed_and_other_files_kept(tmp_path):
  filled(tmp_path, 2)
  shard(tmp_path, 2).write_bytes(b"torn")
  (tmp_path / ".episodes-000003.arrayrecord.0a.tmp").write_bytes(b"torn")
  (tmp_path / "notes.txt").write_text("mine")
  reader = ReplayStore(tmp_path, read_only=True)
  assert content(reader) == expected(0, 1) and shard(tmp_path, 2).exists()
  store = ReplayStore(tmp_path)
  assert content(store) == expected(0, 1)
  assert sorted(p.name for p in tmp_path.iterdir()) == [
    "episodes-000000-00000-of-00001.arrayrecord",
    "episodes-000001-00000-of-00001.arrayrecord",
    "manifest.json",
    "notes.txt",
  ]
  store.write(2, episodes(2))
  assert content(ReplayStore(tmp_path)) == expected(0, 1, 2)


def test_a_reader_changes_nothing(tmp_path):
  filled(tmp_path / "x")
  shard(tmp_path / "x", 1).write_bytes(b"damaged")
  before = files(tmp_path)
  reader = ReplayStore(tmp_path / "x", read_only=True)
  assert len(reader.verify()) == 1 and reader.rounds == [0, 2]
  for change in (lambda: reader.write(3, episodes(3)), lambda: reader.discard_after(0)):
    with pytest.raises(UserError, match="reading only"):
      change()
  assert len(ReplayStore(tmp_path / "missing", read_only=True)) == 0
  assert files(tmp_path) == before


def flips(data):
  random = np.random.default_rng(0)
  for offset in [0, len(data) - 1, *random.integers(len(data), size=20)]:
    broken = bytearray(data)
    broken[offset] ^= 1 << random.integers(8)
    yield bytes(broken)


def cuts(data):
  yield from (data[:size] for size in (0, 1, len(data) // 2, len(data) - 1))
  yield data + b"\0"


@pytest.mark.parametrize("damages", [flips, cuts])
def test_every_damaged_shard_is_set_aside_and_the_rest_still_reads(tmp_path, damages):
  filled(tmp_path / "good")
  for number, damage in enumerate(damages(shard(tmp_path / "good", 1).read_bytes())):
    folder = tmp_path / str(number)
    shutil.copytree(tmp_path / "good", folder)
    shard(folder, 1).write_bytes(damage)
    (sentence,) = ReplayStore(folder).verify()
    assert sentence.startswith(f"{shard(folder, 1).name} (round 1) has ")
    assert content(ReplayStore(folder)) == expected(0, 2)
    aside = folder / "quarantine" / shard(folder, 1).name
    assert aside.read_bytes() == damage
    assert " instead of " in aside.with_name(aside.name + ".reason.txt").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [entry["round"] for entry in manifest["quarantined"]] == [1]


def test_a_missing_shard_is_reported_and_its_round_can_be_played_again(tmp_path):
  filled(tmp_path)
  shard(tmp_path, 1).unlink()
  store = ReplayStore(tmp_path)
  assert store.verify() == [f"{shard(tmp_path, 1).name} (round 1) is missing; it was set aside."]
  assert store.verify() == [] and content(store) == expected(0, 2)
  store.write(1, episodes(1))
  assert content(ReplayStore(tmp_path)) == expected(0, 1, 2)


def test_nothing_damaged_is_read_even_without_verify(tmp_path):
  filled(tmp_path)
  for round in (0, 1):
    data = bytearray(shard(tmp_path, round).read_bytes())
    data[len(data) // 2] ^= 1
    shard(tmp_path, round).write_bytes(data)
  store = ReplayStore(tmp_path)
  with pytest.warns(UserWarning, match="round 1"):
    source = store.window(2, 2)
  assert list(source) == expected(2)[2]
  with pytest.warns(UserWarning, match="round 0"), pytest.raises(UserError):
    next(store.episodes(0))
  with pytest.raises(UserError, match="no episodes in a window of 1 rounds up to round 1"):
    store.window(1, 1)


def test_every_flipped_bit_of_a_manifest_is_an_error_and_deletes_nothing(tmp_path):
  filled(tmp_path, 2)
  path, before = tmp_path / "manifest.json", files(tmp_path)
  data = path.read_bytes()
  for offset in range(len(data)):
    broken = data[:offset] + bytes([data[offset] ^ 1 << offset % 8]) + data[offset + 1 :]
    path.write_bytes(broken)
    with pytest.raises(UserError, match="damaged"):
      ReplayStore(tmp_path)
  path.unlink()
  with pytest.raises(UserError, match="2 shards but no manifest"):
    ReplayStore(tmp_path)
  assert {n for n in before if n != "manifest.json"} == set(files(tmp_path))


def test_killed_at_any_step_of_a_write_the_round_is_whole_or_absent(tmp_path):
  filled(tmp_path / "start", 2)
  filled(tmp_path / "whole", 3)
  killed = crash_everywhere(tmp_path, "write")
  assert {f"{when} {call}" for when in ("before", "after") for call in ("fsync", "replace")} | {
    "before close",
    "after write",
  } <= set(killed.values())
  for folder, step in killed.items():
    store = ReplayStore(folder)
    assert content(store) in (expected(0, 1), expected(0, 1, 2)), step
    assert store.rounds == [0, 1, 2] or step != "finished"
    if 2 not in store.rounds:
      store.write(2, episodes(2))
    assert files(folder) == files(tmp_path / "whole"), step


def test_killed_at_any_step_of_a_discard_no_round_is_half_gone(tmp_path):
  filled(tmp_path / "start", 3)
  filled(tmp_path / "whole", 1)
  for folder, step in crash_everywhere(tmp_path, "discard").items():
    store = ReplayStore(folder)
    assert content(store) in (expected(0), expected(0, 1, 2)), step
    store.discard_after(0)
    assert files(folder) == files(tmp_path / "whole"), step


def test_killed_at_any_step_of_the_first_opening_it_opens(tmp_path):
  ReplayStore(tmp_path / "whole")
  for folder, step in crash_everywhere(tmp_path, "open").items():
    ReplayStore(folder)
    assert files(folder) == files(tmp_path / "whole"), step


def test_killed_at_any_step_of_a_quarantine_the_damage_is_still_set_aside(tmp_path):
  filled(tmp_path / "start", 3)
  shard(tmp_path / "start", 1).write_bytes(b"torn")
  for folder, step in crash_everywhere(tmp_path, "verify").items():
    store = ReplayStore(folder)
    store.verify()
    assert content(ReplayStore(folder)) == expected(0, 2), step
    aside = folder / "quarantine" / shard(folder, 1).name
    assert aside.read_bytes() == b"torn"
    note = aside.with_name(aside.name + ".reason.txt").read_text()
    assert note.startswith(f"{aside.name} has sha256 "), step


@pytest.mark.parametrize("step", ["replace", "fsync", "close"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_keeps_what_was_committed_and_the_store_goes_on(
  tmp_path, monkeypatch, step, nth
):
  store = filled(tmp_path, 2)
  if step == "close":
    writer = functools.partial(ArrayRecordWriter, "/dev/full")
    monkeypatch.setattr("jaxzero.selfplay.replay.ArrayRecordWriter", lambda _, opts: writer(opts))
  else:
    real, calls = getattr(os, step), []

    def full(*args):
      calls.append(args)
      if len(calls) == nth:
        raise OSError(28, os.strerror(28))
      return real(*args)

    monkeypatch.setattr(os, step, full)
  with pytest.raises(
    UserError, match=r"disk is full \(\d+ bytes are needed and \d+ bytes are free"
  ):
    store.write(2, episodes(2))
  monkeypatch.undo()
  assert content(store) == content(ReplayStore(tmp_path, read_only=True)) == expected(0, 1)
  assert not list(tmp_path.glob(".*.tmp"))
  store.write(2, episodes(2))
  assert content(ReplayStore(tmp_path)) == expected(0, 1, 2)


def staged(folder, round, parts):
  """What the hosts stage of a round, each a contiguous range, the last host first."""
  everything, store = episodes(round), ReplayStore(folder, primary=False)
  size = len(everything) // parts
  return [
    store.stage(round, part, parts, everything[part * size : (part + 1) * size])
    for part in reversed(range(parts))
  ]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_order_of_the_records_does_not_depend_on_the_number_of_hosts(tmp_path, parts):
  store = ReplayStore(tmp_path)
  for round in range(3):
    store.commit(round, staged(tmp_path, round, parts))
  assert len(store.shards) == 3 * parts and content(store) == expected(0, 1, 2)
  assert list(store.window(2, 2)) == list(itertools.chain(*expected(1, 2).values()))


def test_staged_parts_are_seen_by_all_once_committed_and_by_none_before(tmp_path):
  store, other = filled(tmp_path, 1), ReplayStore(tmp_path, primary=False)
  shards = staged(tmp_path, 1, 2)
  other.refresh()
  assert other.rounds == ReplayStore(tmp_path, read_only=True).rounds == [0]
  store.commit(1, [ShardInfo(**json.loads(json.dumps(dataclasses.asdict(s)))) for s in shards])
  other.refresh()
  assert content(other) == expected(0, 1)


def test_uncommitted_parts_are_swept_by_the_primary_alone(tmp_path):
  filled(tmp_path, 1)
  staged(tmp_path, 1, 2)
  before = files(tmp_path)
  ReplayStore(tmp_path, read_only=True)
  ReplayStore(tmp_path, primary=False)
  assert files(tmp_path) == before
  store = ReplayStore(tmp_path)
  assert len(before) == 4 and len(files(tmp_path)) == 2
  store.commit(1, staged(tmp_path, 1, 4))
  assert content(ReplayStore(tmp_path)) == expected(0, 1)


def test_a_round_is_committed_whole_from_one_folder_by_the_primary(tmp_path):
  store, other = ReplayStore(tmp_path / "a"), ReplayStore(tmp_path / "a", primary=False)
  first, second = staged(tmp_path / "a", 0, 2)
  for wrong in ([], [first], [first, first], [*staged(tmp_path / "a", 0, 4), second]):
    with pytest.raises(UserError, match="needs each of its parts once"):
      store.commit(0, wrong)
  elsewhere = staged(tmp_path / "b", 1, 2)
  with pytest.raises(UserError, match="use a shared file system or gs://"):
    store.commit(1, elsewhere)
  other.commit(0, [first, second])
  assert other.rounds == [0] and ReplayStore(tmp_path / "a", read_only=True).rounds == []
  with pytest.raises(UserError, match="only the primary host"):
    other.discard_after(-1)
  assert store.rounds == []


def test_one_damaged_part_is_set_aside_and_the_others_of_its_round_stay(tmp_path):
  store = ReplayStore(tmp_path)
  store.commit(0, staged(tmp_path, 0, 4))
  (tmp_path / store.shards[1].name).write_bytes(b"torn")
  other = ReplayStore(tmp_path, primary=False)
  (sentence,) = store.verify()
  assert sentence.startswith(f"{other.shards[1].name} (round 0) has sha256 ")
  assert len(other.verify()) == 1  # moved by now: missing, so both hosts read the same
  left = [record for i, record in enumerate(expected(0)[0]) if i != 1]
  assert content(store) == content(other) == content(ReplayStore(tmp_path)) == {0: left}
  assert store.figures(0) is None
  store.commit(0, staged(tmp_path, 0, 2))  # played again, by other hosts
  assert content(ReplayStore(tmp_path)) == expected(0) and len(list(tmp_path.glob("*.array*"))) == 2


def test_figures_are_committed_with_their_round_and_go_with_it(tmp_path):
  store = filled(tmp_path, 1)
  store.commit(1, staged(tmp_path, 1, 2), {"seconds": 1.5})
  store = ReplayStore(tmp_path)
  assert [store.figures(round) for round in range(3)] == [{}, {"seconds": 1.5}, None]
  store.discard_after(0)
  store.write(1, episodes(1))
  assert ReplayStore(tmp_path).figures(1) == {}


def test_a_store_of_version_1_is_read_and_goes_on(tmp_path):
  store = filled(tmp_path, 2)
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  for entry in manifest["shards"]:
    old = entry["name"].replace("-00000-of-00001", "")
    (tmp_path / entry["name"]).rename(tmp_path / old)
    entry["name"] = old
    del entry["part"], entry["parts"]
  del manifest["sha256"]
  manifest["version"] = 1
  manifest["sha256"] = replay._digest(manifest)
  (tmp_path / "manifest.json").write_text(json.dumps(manifest))
  store = ReplayStore(tmp_path)
  assert store.verify() == [] and content(store) == expected(0, 1)
  store.write(2, episodes(2))
  assert content(ReplayStore(tmp_path)) == expected(0, 1, 2)
  assert json.loads((tmp_path / "manifest.json").read_text())["version"] == 2


def ids(sampler, items):
  return [sampler[i].episode_id for i in items]


def test_the_window_holds_the_newest_rounds_in_order(tmp_path):
  store = filled(tmp_path, 4)
  for last, rounds, held in ((3, 2, [2, 3]), (1, 5, [0, 1]), (2, 1, [2]), (9, 8, [2, 3])):
    assert list(store.window(last, rounds)) == list(itertools.chain(*expected(*held).values()))
  for last, rounds in ((3, 0), (-1, 3), (9, 2)):
    with pytest.raises(UserError, match=r"its rounds are \[0, 1, 2, 3\]"):
      store.window(last, rounds)


def test_every_epoch_has_each_episode_once_in_its_own_order(tmp_path):
  store = filled(tmp_path)
  sampler = store.sampler(store.window(2, 3), 5)
  epochs = [ids(sampler, range(12 * e, 12 * e + 12)) for e in range(3)]
  everything = sorted(f"7-{r}-{n}" for r in range(3) for n in range(4))
  assert all(sorted(epoch) == everything for epoch in epochs)
  assert len(set(map(tuple, epochs))) == 3
  following = store.sampler(store.window(2, 3), 6)
  assert ids(following, range(12)) not in epochs


ORDER = """
import sys
from jaxzero.selfplay.replay import ReplayStore
store = ReplayStore(sys.argv[1], read_only=True)
sampler = store.sampler(store.window(2, 3), (3, 1))
print(*[sampler[i].episode_id for i in range(17, 30)])
"""


def test_the_order_is_a_pure_function_of_seed_and_step(tmp_path):
  store = filled(tmp_path)
  sampler = store.sampler(store.window(2, 3), (3, 1))
  backwards = ids(sampler, reversed(range(30)))[::-1]
  assert ids(sampler, range(30)) == backwards
  other = subprocess.run(
    [sys.executable, "-c", ORDER, str(tmp_path)], capture_output=True, text=True, check=True
  )
  assert other.stdout.split() == backwards[17:30]
