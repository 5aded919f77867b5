import json

import pytest

from jaxzero.recipes.cells import Cells

KEY = {"strategy": "mcts", "budget": 64, "setting": {"temperature": 0.8}, "model": None}


@pytest.fixture
def made():
  return []


@pytest.fixture
def make(made):
  def one():
    made.append(1)
    return {"accuracy": 0.5, "right": "0101"}

  return one


def test_a_cell_is_made_once(tmp_path, make, made):
  first = Cells(tmp_path / "study").get(KEY, make)
  # Another process, the key's names in another order.
  again = Cells(tmp_path / "study").get(dict(reversed(KEY.items())), make)
  assert first == again == {"accuracy": 0.5, "right": "0101"}
  assert len(made) == 1


@pytest.mark.parametrize(
  "name, value", [("budget", 65), ("setting", {"temperature": 1.0}), ("model", "other")]
)
def test_any_other_setting_is_another_cell(tmp_path, make, made, name, value):
  cells = Cells(tmp_path)
  cells.get(KEY, make)
  assert not cells.has(KEY | {name: value})
  cells.get(KEY | {name: value}, make)
  assert len(made) == 2 and cells.has(KEY)


@pytest.mark.parametrize(
  "damage", [lambda text: text[: len(text) // 2], lambda _: "", lambda _: "[1]"]
)
def test_a_torn_cell_is_made_again(tmp_path, make, made, damage):
  cells = Cells(tmp_path)
  cells.get(KEY, make)
  path = cells.path(KEY)
  path.write_text(damage(path.read_text()))
  assert not cells.has(KEY)
  assert cells.get(KEY, make)["right"] == "0101"
  assert len(made) == 2 and cells.has(KEY)


def test_a_cell_of_another_key_is_not_read(tmp_path, make, made):
  cells = Cells(tmp_path)
  cells.get(KEY, make)
  path = cells.path(KEY)
  path.write_text(json.dumps({**json.loads(path.read_text()), "key": {"budget": 1}}))
  cells.get(KEY, make)
  assert len(made) == 2


def test_a_measurement_that_fails_leaves_no_cell(tmp_path):
  cells = Cells(tmp_path)

  def fail():
    raise RuntimeError

  with pytest.raises(RuntimeError):
    cells.get(KEY, fail)
  assert not cells.has(KEY)
