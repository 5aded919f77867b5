"""Every notebook runs from top to bottom at smoke size, and is stored without outputs."""

from __future__ import annotations

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_at_smoke_size_and_shows_a_tree_and_two_curves(path, tmp_path, monkeypatch):
  monkeypatch.setenv("JAXZERO_SMOKE", "1")
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  # Nearly all of the time is XLA compiling functions that then run for milliseconds.
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
  notebook = nbformat.read(path, as_version=4)
  nbclient.NotebookClient(
    notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}
  ).execute()
  outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
  kinds = [kind for output in outputs for kind in output.get("data", {})]
  assert kinds.count("image/png") == 2
  assert any("<svg" in output.get("data", {}).get("text/html", "") for output in outputs)
  printed = "".join(output.get("text", "") for output in outputs)
  assert "forward tokens" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_clean_and_opens_in_colab(path):
  notebook = nbformat.read(path, as_version=4)
  nbformat.validate(notebook)
  assert all(not cell.get("outputs") for cell in notebook.cells)
  colab = "https://colab.research.google.com/github/jaxzero/jaxzero/blob/main/notebooks/"
  assert colab + path.name in notebook.cells[0].source
