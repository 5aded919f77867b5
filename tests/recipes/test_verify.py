"""`verify` finds what is damaged, tells it from what is harmless, and changes nothing."""

import dataclasses
import shutil

import numpy as np
import pytest
from trees import tree_arrays

from jaxzero.errors import UserError
from jaxzero.recipes.cells import Cells
from jaxzero.recipes.verify import verify
from jaxzero.selfplay.labels import StepLabels
from jaxzero.selfplay.replay import ReplayStore


@pytest.fixture
def run(smoke_run, tmp_path):
  return shutil.copytree(smoke_run, tmp_path / "run")


def content(folder):
  return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def damages(data):
  """Bit flips all over, cuts, and one byte too many."""
  random = np.random.default_rng(len(data))
  for offset in {0, len(data) - 1, *random.integers(len(data), size=4).tolist()}:
    yield data[:offset] + bytes([data[offset] ^ 1 << random.integers(8)]) + data[offset + 1 :]
  yield from (data[: len(data) // 2], data[:-1], b"", data + b"\0")


def test_a_good_run_has_nothing_to_find_and_all_of_it_was_read(run):
  before = content(run)
  found = verify(run)
  assert found.findings == []
  assert found.files == len(before) and found.bytes == sum(map(len, before.values()))
  assert found.episodes == len(ReplayStore(run / "episodes", read_only=True)) > 0
  assert found.checkpoints == len(list(run.glob("checkpoints/*/digest-*.json"))) > 2
  assert content(run) == before


def test_a_run_in_a_bucket_is_checked_alike(run, gcs):
  for stage in ("pretrain", "control"):
    shutil.rmtree(run / "checkpoints" / stage)
  for name, data in content(run).items():
    gcs.put(f"runs/one/{name}", data)
  assert verify("gs://bucket/runs/one") == verify(run)
  shard = next(name for name in gcs.objects if name.endswith(".arrayrecord"))
  gcs.put(shard, gcs.objects[shard][:-1])
  (finding,) = verify("gs://bucket/runs/one").damage
  assert f"runs/one/{finding.path}" == shard and "instead of" in finding.what
  with pytest.raises(UserError, match="there is no run at gs://bucket/runs/two"):
    verify("gs://bucket/runs/two")


@pytest.mark.parametrize(
  "pattern, where",
  [
    ("episodes/*.arrayrecord", "itself"),
    ("episodes/manifest.json", "itself"),
    ("checkpoints/self_play/*/params/_METADATA", "step"),
    ("checkpoints/self_play/*/optimizer/d/*", "step"),
    ("checkpoints/pretrain/digest-*.json", "step"),
  ],
)
def test_what_has_a_checksum_is_found_whatever_happens_to_it(run, pattern, where):
  path = sorted(run.glob(pattern))[-1]
  data = path.read_bytes()
  for damage in damages(data):
    if damage.rstrip(b"\n") == data.rstrip(b"\n"):
      continue  # the end of a line carries nothing
    path.write_bytes(damage)
    (finding,) = verify(run).damage
    name = str(path.relative_to(run))
    step = "/".join(name.replace("digest-", "").removesuffix(".json").split("/")[:3])
    assert finding.path == (name if where == "itself" else step)
  path.unlink()
  assert len(verify(run).damage) == (0 if "digest" in pattern else 1)


@pytest.mark.parametrize(
  "name",
  ["config.json", "ledger.json", "summary.json", "results/supervised.json", "metrics.jsonl",
   "tokenizer/tokenizer.model"],
)  # fmt: skip
def test_what_has_none_must_be_whole(run, name):
  data = (run / name).read_bytes()
  for damage in (data[: len(data) // 2], b"\xff" + data[1:], data.rstrip(b"\n")[:-1]):
    (run / name).write_bytes(damage)
    assert [finding.path for finding in verify(run).damage] == [name]


def test_a_studys_cells_and_step_labels_must_be_whole_too(run):
  cells, tokens = Cells(run / "scale"), np.arange(12, dtype=np.int32).reshape(3, 4)
  cells.get({"budget": 1}, lambda: {"right": "01"})
  length, right = np.full(3, 4, np.int32), np.ones(3, bool)
  labels = StepLabels(tokens, length, tokens, length, np.zeros((3, 5), np.float32), right, length)
  labels.save(run / "prm" / "labels.npz")
  assert verify(run).findings == []
  for path in (cells.path({"budget": 1}), run / "prm" / "labels.npz"):
    data = path.read_bytes()
    flipped = data[: len(data) // 5] + b"\xff\xff" + data[len(data) // 5 + 2 :]
    for damage in (data[: len(data) // 2], flipped, b""):
      path.write_bytes(damage)
      assert [one.path for one in verify(run).damage] == [str(path.relative_to(run))]
    path.write_bytes(data)


def test_an_episode_whose_verdict_is_not_the_verifiers_is_found(run):
  store = ReplayStore(run / "episodes")
  last = store.rounds[-1]
  episodes = list(store.episodes(last))
  wrong = next(i for i, episode in enumerate(episodes) if not episode.right)
  played = episodes[wrong].tokens
  episodes[wrong] = dataclasses.replace(
    episodes[wrong],
    right=True,
    harvested=played,
    **empty(episodes[wrong]),
    **tree_arrays(played, right=[played]),
  )
  store.discard_after(last - 1)
  store.write(last, episodes)
  (finding,) = verify(run).damage
  assert f"{episodes[wrong].episode_id} says right=True, the verifier" in finding.what


def empty(episode):
  """Search results of the right sizes for an episode's tokens as the harvested ones."""
  moves, candidates = len(episode.tokens), episode.candidates.shape[1]
  weights = np.full((moves, candidates + 1), 1 / (candidates + 1), np.float32)
  return {
    "candidates": np.tile(np.arange(candidates, dtype=np.int32), (moves, 1)),
    "weights": weights,
    "values": np.zeros(moves, np.float32),
    "visit_counts": np.zeros((moves, candidates), np.int32),
  }


def test_what_killed_writes_left_is_harmless(run):
  stage = run / "checkpoints" / "self_play"
  (stage / "99").mkdir()
  (stage / "99" / "x").write_text("half")
  (run / ".summary.json.0a.tmp").write_text("{")
  (run / "episodes" / "episodes-000099-00000-of-00002.arrayrecord").write_text("half")
  found = verify(run)
  assert found.damage == []
  assert sorted(finding.path for finding in found.findings) == [
    ".summary.json.0a.tmp",
    "checkpoints/self_play/99",
    "episodes/episodes-000099-00000-of-00002.arrayrecord",
  ]


def test_what_was_set_aside_before_is_told_with_its_reason(run):
  shard = sorted(run.glob("episodes/*.arrayrecord"))[0]
  shard.write_bytes(b"torn")
  ReplayStore(run / "episodes").verify()
  found = verify(run)
  assert found.damage == []
  (finding,) = found.findings
  assert finding.path.endswith(".reason.txt") and "has sha256" in finding.what
