"""Verbs that train: quickstart, train."""

from __future__ import annotations

import dataclasses
import pathlib
import runpy
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json
from jaxzero.errors import UserError

if TYPE_CHECKING:
  from jaxzero.recipes.experiment import Experiment


def quickstart(arguments: list[str]) -> None:
  from jaxzero.recipes.experiment import Experiment

  _experiment(Experiment(), arguments, "runs/quickstart", "jaxzero quickstart")


def train(arguments: list[str]) -> None:
  from jaxzero.recipes.experiment import Experiment

  if arguments and arguments[0] in ("-h", "--help"):
    _experiment(Experiment(), ["--help"], "runs/NAME", "jaxzero train CONFIG.py")
  if not arguments or arguments[0].startswith("-"):
    raise UserError("train needs a config file: jaxzero train configs/smoke.py --run runs/smoke.")
  path = pathlib.Path(arguments[0])
  if not path.is_file():
    raise UserError(f"there is no config file {path}; configs/ holds some to start from.")
  experiment = config_of(path)
  _experiment(experiment, arguments[1:], f"runs/{path.stem}", f"jaxzero train {path}")


def config_of(path: pathlib.Path) -> Experiment:
  """The `config` that a Python file defines."""
  from jaxzero.recipes.experiment import Experiment

  try:
    config = runpy.run_path(str(path)).get("config")
  except Exception as error:
    raise UserError(f"{path} does not run: {type(error).__name__}: {error}.") from error
  if not isinstance(config, Experiment):
    raise UserError(f"{path} defines no `config`; end it with config = Experiment(...).")
  return config


def _experiment(default: Experiment, arguments: list[str], folder: str, name: str) -> None:
  """Parses --run, --json, --profile and overrides of any knob, then runs every stage."""
  from jaxzero.recipes.experiment import Experiment

  fields = [
    ("config", Annotated[Experiment, tyro.conf.arg(name="")], default),
    (
      "run",
      Annotated[str, tyro.conf.arg(help="The run's folder or gs:// path; continued.")],
      folder,
    ),
    ("json", Annotated[pathlib.Path | None, tyro.conf.arg(help="Summary, again.")], None),
    ("profile", Annotated[str | None, tyro.conf.arg(help="Train steps to trace: 10:13.")], None),
  ]
  Arguments = dataclasses.make_dataclass("Arguments", fields, frozen=True)
  parsed = parse(Arguments, arguments, name)
  parsed.config.check()
  start_jax()
  from jaxzero.parallel import preemption
  from jaxzero.parallel.hosts import is_primary
  from jaxzero.recipes.profiler import Window
  from jaxzero.recipes.quickstart import quickstart

  window = None if parsed.profile is None else Window.parse(parsed.profile)
  preemption.listen()
  summary = quickstart(parsed.config, parsed.run, window)
  if is_primary():
    _print_summary(summary, parsed.run)
    write_json(parsed.json, summary)


def _print_summary(summary: dict[str, Any], folder: str) -> None:
  from rich.console import Console
  from rich.table import Table

  table = Table(title="greedy accuracy on held-out problems", title_justify="left")
  for column in ("stage", "solved", "95 % interval"):
    table.add_column(column)
  rows = {
    "supervised": summary["supervised"],
    "control (more supervision, equal FLOPs)": summary["control"],
    "self-play": summary["self_play"],
  }
  for result in summary["search"]:
    rows[f"self-play, mcts {result['multiple']}x"] = result
  for label, result in rows.items():
    low, high = result["ci95"]
    table.add_row(
      label,
      f"{result['solved']}/{result['problems']} = {result['accuracy']:.1%}",
      f"{low:.1%} to {high:.1%}",
    )
  console = Console()
  console.print(table)
  console.print(f"{summary['wall_s'] / 60:.1f} minutes; open {folder}/report.html")
