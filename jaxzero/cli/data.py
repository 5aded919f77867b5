"""The verb export-data: a run's data set as Parquet."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json


@dataclasses.dataclass(frozen=True)
class ExportData:
  """Write a run's trees and paths as Parquet: jaxzero export-data RUN --out FOLDER"""

  run: Annotated[str, tyro.conf.Positional]
  out: str
  """A new folder."""
  json: pathlib.Path | None = None
  """Write one JSON object here."""


def export_data(arguments: list[str]) -> None:
  parsed = parse(ExportData, arguments, "jaxzero export-data")
  start_jax()
  from jaxzero.recipes.dataset import export_data

  counts = export_data(parsed.run, parsed.out)
  print(
    f"{parsed.out}: {counts.episodes} episodes of {counts.problems} problems, {counts.paths} paths "
    f"({counts.right} right), {counts.nodes} nodes, {counts.moves} moves"
  )
  write_json(parsed.json, dataclasses.asdict(counts))
