"""What is exported can be read by others, says the same as the run, and is judged again."""

import json

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxzero import cli
from jaxzero.errors import UserError
from jaxzero.recipes import dataset
from jaxzero.recipes.dataset import Exported, export_data, verify_data
from jaxzero.selfplay.replay import ReplayStore


@pytest.fixture(scope="module")
def out(played_run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("data") / "export"
  export_data(played_run, folder)
  return folder


@pytest.fixture(scope="module")
def episodes(played_run):
  store = ReplayStore(played_run / "episodes", read_only=True)
  return [episode for round in store.rounds for episode in store.episodes(round)]


def test_pandas_reads_every_end_node_and_move_of_the_run(out, episodes):
  paths, trees, moves = (pd.read_parquet(out / f"{name}.parquet") for name in dataset.TABLES)
  for episode in episodes:
    tree, nodes = episode.tree, trees[trees.episode_id == episode.episode_id]
    for name in ("parent", "prior", "visits", "value", "verdict"):
      np.testing.assert_array_equal(nodes[name], getattr(tree, name))
    np.testing.assert_array_equal(nodes.token[1:], tree.token[1:])
    own = paths[paths.episode_id == episode.episode_id]
    ends = np.flatnonzero(tree.verdict >= 0)
    np.testing.assert_array_equal(own.node, ends)
    np.testing.assert_array_equal(own.right, tree.verdict[ends] == 1)
    (played,) = own[own.played].tokens
    np.testing.assert_array_equal(played, episode.tokens)
    (found,) = own[own.right].tokens
    np.testing.assert_array_equal(found, episode.harvested)
    advice = moves[moves.episode_id == episode.episode_id]
    np.testing.assert_array_equal(advice.token, episode.harvested)
    np.testing.assert_array_equal(np.stack(advice.candidates), episode.candidates)
    weights = np.concatenate([np.stack(advice.weights), advice.rest.to_numpy()[:, None]], axis=1)
    np.testing.assert_array_equal(weights, episode.weights)
  assert len(paths) == sum((e.tree_verdict >= 0).sum() for e in episodes)
  assert paths.right.sum() == sum((e.tree_verdict == 1).sum() for e in episodes)
  assert len(trees) == sum(len(e.tree_parent) for e in episodes)


def test_the_text_is_the_completion_and_the_prior_its_probability(out, task, episodes):
  rows = duckdb.sql(
    f"""select p.prompt, p.thinking, p.answer, p."right", p.log_prob, sum(t.prior) as total
    from '{out}/paths.parquet' p join '{out}/trees.parquet' t on t.episode_id = p.episode_id
    where list_contains(p.tokens, t.token) and p."right" and not exists (
      from '{out}/paths.parquet' q where q.episode_id = p.episode_id and not q."right")
    group by all"""
  ).fetchall()
  assert rows
  for prompt, thinking, answer, right, log_prob, total in rows:
    assert task.verify(task.parse(prompt), answer, thinking).right == right
    assert log_prob == pytest.approx(total)


def test_the_card_and_the_counts_are_true(out, episodes):
  counts = verify_data(out)
  assert counts == Exported(
    episodes=32,
    problems=len({episode.problem_id for episode in episodes}),
    paths=sum((e.tree_verdict >= 0).sum() for e in episodes),
    right=32,
    nodes=sum(len(e.tree_parent) for e in episodes),
    moves=sum(len(e.harvested) for e in episodes),
  )
  card = (out / "README.md").read_text()
  assert card.startswith("---\nlicense: apache-2.0\n") and "`countdown`" in card
  assert f"{counts.paths}, of which 32 are right" in card and "rounds 0 to 1" in card
  assert "`tokens` list of int32" in card and "`right` bool" in card
  for name in dataset.TABLES:
    schema = pq.read_schema(out / f"{name}.parquet")
    assert all(f"`{field.name}` " in card for field in schema)
  assert len(list(out.iterdir())) == 4 and len(list(out.parent.iterdir())) == 1


def test_the_same_run_makes_the_same_bytes(played_run, out, tmp_path):
  export_data(played_run, tmp_path / "again")
  for path in out.iterdir():
    assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_what_breaks_off_leaves_nothing(played_run, tmp_path, monkeypatch):
  def broken(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(dataset, "data_card", broken)
  with pytest.raises(UserError, match="the disk is full"):
    export_data(played_run, tmp_path / "out")
  assert list(tmp_path.iterdir()) == []


def rewritten(folder, out, name, change):
  """A copy of the export with one table changed by `change` of its rows."""
  folder.mkdir()
  for path in out.iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  table = pq.read_table(out / f"{name}.parquet")
  rows = table.to_pylist()
  change(rows)
  pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), folder / f"{name}.parquet")
  return folder


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("paths", lambda rows: rows[0].update(right=not rows[0]["right"]), "row 0 says right="),
    ("paths", lambda rows: rows[3].update(problem_id="1 2 = 3"), "row 3: .* is not '1 2 = 3'"),
    ("paths", lambda rows: rows[3].update(prompt="one"), "row 3 has no problem of the task"),
    ("paths", lambda rows: rows.pop(), "not of one export"),
    ("trees", lambda rows: [row.update(verdict=-1) for row in rows], "row 0 is not an end"),
    ("trees", lambda rows: rows.append(rows[0]), "not of one export"),
    ("paths", lambda rows: rows[3].update(prompt=None), "nulls in column prompt"),
    ("paths", lambda rows: rows[3].update(thinking=["1+1=2", None]), "nulls in column thinking"),
    ("paths", lambda rows: rows[0].update(finished=True, answer=None), "row 0 is finished"),
    ("trees", lambda rows: rows[3].update(verdict=None), "nulls in column verdict"),
    ("moves", lambda rows: rows[3].update(candidates=None), "nulls in column candidates"),
  ],
)
def test_what_is_not_true_is_found(out, tmp_path, name, change, message):
  with pytest.raises(UserError, match=message):
    verify_data(rewritten(tmp_path / "data", out, name, change))


def exit_of(capsys, *arguments):
  with pytest.raises(SystemExit) as stopped:
    cli.main([str(argument) for argument in arguments])
  error = capsys.readouterr().err
  assert "Traceback" not in error and error.count("jaxzero: ") == 1
  return stopped.value.code, error


def test_malformed_files_are_one_sentence(out, tmp_path, capsys):
  data = (out / "paths.parquet").read_bytes()
  folder = rewritten(tmp_path / "data", out, "trees", lambda rows: None)
  other = pa.table({"a": [1]})
  for damage in (data[:100], data[:-1], b"", b"no Parquet", data[:200] + b"\0" * 200 + data[400:]):
    (folder / "paths.parquet").write_bytes(damage)
    code, error = exit_of(capsys, "verify", folder)
    assert code == 2 and "paths.parquet" in error
  pq.write_table(other, folder / "paths.parquet")
  assert "has the columns a of other names" in exit_of(capsys, "verify", folder)[1]
  pq.write_table(
    pq.read_table(out / "paths.parquet").replace_schema_metadata(), folder / "paths.parquet"
  )
  assert "does not say which task" in exit_of(capsys, "verify", folder)[1]
  (folder / "paths.parquet").unlink()
  assert "paths.parquet is missing" in exit_of(capsys, "verify", folder)[1]


def test_the_verbs_export_and_verify(played_run, tmp_path, capsys):
  cli.main(
    ["export-data", str(played_run), "--out", str(tmp_path / "d"), "--json", str(tmp_path / "j")]
  )
  assert json.loads((tmp_path / "j").read_text())["right"] == 32
  cli.main(["verify", str(tmp_path / "d"), "--json", str(tmp_path / "j")])
  assert json.loads((tmp_path / "j").read_text())["good"] is True
  assert "(32 right)" in capsys.readouterr().out
  code, error = exit_of(capsys, "export-data", played_run, "--out", tmp_path / "d")
  assert code == 2 and "is there already" in error
  empty = tmp_path / "empty"
  empty.mkdir()
  (empty / "config.json").write_bytes((played_run / "config.json").read_bytes())
  code, error = exit_of(capsys, "export-data", empty, "--out", tmp_path / "e")
  assert code == 2 and "has no episodes to export" in error
