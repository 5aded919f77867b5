"""The verb that makes a process reward model: prm."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json

if TYPE_CHECKING:
  from rich.table import Table


def prm(arguments: list[str]) -> None:
  from jaxzero.recipes.prm import PrmConfig, train_prm

  fields: list[Any] = [
    ("run", Annotated[str, tyro.conf.Positional]),
    ("config", Annotated[PrmConfig, tyro.conf.arg(name="")], PrmConfig()),
    ("fresh", Annotated[bool, tyro.conf.arg(help="Throw away the run's PRM.")], False),
    ("json", Annotated[pathlib.Path | None, tyro.conf.arg(help="RUN/prm.json, again.")], None),
  ]
  Prm = dataclasses.make_dataclass("Prm", fields, frozen=True)
  Prm.__doc__ = "Train and grade a run's process reward model: jaxzero prm RUN"
  parsed = parse(Prm, arguments, "jaxzero prm")
  parsed.config.check()
  start_jax()
  from jaxzero.parallel import preemption
  from jaxzero.parallel.hosts import is_primary

  preemption.listen()
  result = train_prm(parsed.run, parsed.config, parsed.fresh)
  if is_primary():
    _print(result, parsed.run)
    write_json(parsed.json, result)


def _print(result: dict[str, Any], folder: str) -> None:
  from rich.console import Console

  console, grades = Console(), result["grades"]
  cost = result["labels"]["training"]
  console.print(
    f"{cost['labels']} labels on {cost['problems']} problems from {cost['rollouts']:g} rollouts "
    f"({cost['rollouts_exhaustive']:g} would label every prefix); best at step {result['step']}"
  )
  console.print(_table(grades))
  for judge, told in grades["first_error"].items():
    console.print(
      f"first error, {judge}: F1 {told['f1']:.3f} (found in {told['erroneous']:.1%} of the wrong "
      f"solutions, none in {told['correct']:.1%} of the right ones)"
    )
  console.print(f"the grades are in {folder}/prm.json")


def _table(grades: dict[str, Any]) -> Table:
  from rich.table import Table

  title = f"AUROC on {grades['problems']} test problems, legal steps alone"
  table = Table(title=title, title_justify="left")
  for column in ("position", "prefixes", "illegal", "solvable", "prm", "value head"):
    table.add_column(column)
  table.add_column("prm, success")
  table.add_column("ECE prm, value head")
  for row in (*grades["positions"], grades["undecided"]):
    if row is not None:
      prm, value = row["prm"], row["value"]
      table.add_row(
        row["position"],
        str(row["prefixes"]),
        f"{row['illegal']:.1%}",
        f"{row['solvable']:.1%}",
        *map(_number, (prm["auroc"], value["auroc"], prm["auroc_success"])),
        f"{_number(prm['ece'])}, {_number(value['ece'])}",
      )
  return table


def _number(value: float | None) -> str:
  return "-" if value is None else f"{value:.3f}"
