"""The verb that measures what thinking and training bought: scale."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated, Any

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json
from jaxzero.recipes.study import ScaleConfig


def scale(arguments: list[str]) -> None:
  fields: list[Any] = [
    ("run", Annotated[str, tyro.conf.Positional]),
    ("config", Annotated[ScaleConfig, tyro.conf.arg(name="")], ScaleConfig()),
    (
      "larger",
      Annotated[str | None, tyro.conf.arg(help="A larger model's run, to compare with.")],
      None,
    ),
    ("json", Annotated[pathlib.Path | None, tyro.conf.arg(help="scale.json, again.")], None),
  ]
  Arguments = dataclasses.make_dataclass("Arguments", fields, frozen=True)
  Arguments.__doc__ = "Accuracy against compute, every strategy: jaxzero scale RUN"
  parsed = parse(Arguments, arguments, "jaxzero scale")
  parsed.config.check()
  start_jax()
  from jaxzero.loading import load
  from jaxzero.parallel import preemption
  from jaxzero.parallel.hosts import is_primary
  from jaxzero.recipes.scale import scale
  from jaxzero.recipes.thinkers import Rival

  larger = None if parsed.larger is None else Rival.of(load(parsed.larger), parsed.larger)
  preemption.listen()
  result = scale(parsed.run, parsed.config, larger)
  if is_primary():
    _print(result, parsed.run)
    write_json(parsed.json, result)


def _print(result: dict[str, Any], folder: str) -> None:
  from rich.console import Console
  from rich.table import Table

  table = Table(title="accuracy on held-out problems, by budget", title_justify="left")
  for column in ("strategy", "rights", *(f"{multiple:g}x" for multiple in result["multiples"])):
    table.add_column(column)
  for way in result["ways"]:
    shares = {point.get("multiple"): f"{point['accuracy']:.1%}" for point in way["points"]}
    cells = [shares.get(multiple, "") for multiple in result["multiples"]]
    if None in shares:  # one try
      cells[0] = shares[None]
    table.add_row(way["strategy"], way["rights"], *cells)
  console = Console()
  console.print(table)
  console.print(f"{result['wall_s'] / 60:.1f} minutes; open {folder}/report.html")
