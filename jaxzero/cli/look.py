"""Verbs that look at a run or at the machine: report, verify, bench."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json
from jaxzero.errors import UserError


@dataclasses.dataclass(frozen=True)
class Report:
  """Write a run's page again: jaxzero report RUN"""

  run: Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class Verify:
  """Check every file of a run, or of exported data, changing nothing: jaxzero verify RUN"""

  run: Annotated[str, tyro.conf.Positional]
  json: pathlib.Path | None = None
  """Write one JSON object here."""


@dataclasses.dataclass(frozen=True)
class Bench:
  """Measure speed beside baselines: jaxzero bench decode --sizes 0.7M 5M --batch-sizes 1 64"""

  what: Annotated[str, tyro.conf.Positional]
  """decode, search, selfplay or train."""
  batch_sizes: tuple[int, ...] = ()
  """One case each; default: 1 8 64 for decode, 64 for the others."""
  sizes: tuple[str, ...] = ("0.7M",)
  """Models: 0.4M, 0.7M (the quickstart's), 5M, 13M, 30M."""
  num_simulations: int = 64
  """Of one search."""
  num_candidates: int = 16
  """Tokens offered at each node of a search."""
  parallel: str = "lazy"
  """Search: how a pass of sequential halving is evaluated: none, exact or lazy."""
  repeats: int = 7
  """Timed calls of each side, in turn; the median counts."""
  json: pathlib.Path | None = None
  """Write one JSON object here."""


def report(arguments: list[str]) -> None:
  parsed = parse(Report, arguments, "jaxzero report")
  from jaxzero.view.report import write_report

  print(write_report(parsed.run))


def verify(arguments: list[str]) -> None:
  parsed = parse(Verify, arguments, "jaxzero verify")
  start_jax()
  from jaxzero.recipes.dataset import is_data, verify_data
  from jaxzero.recipes.verify import verify

  if is_data(parsed.run):
    counts = verify_data(parsed.run)
    print(f"{counts.paths} paths judged again ({counts.right} right), {counts.nodes} nodes read")
    write_json(parsed.json, {**dataclasses.asdict(counts), "run": parsed.run, "good": True})
    return
  found = verify(parsed.run)
  for finding in found.findings:
    print(f"{'damaged' if finding.harmful else 'harmless'}: {finding.path} {finding.what}")
  print(
    f"{found.files} files, {found.checkpoints} checkpoints, {found.episodes} episodes, "
    f"{found.bytes} bytes read"
  )
  record = {**dataclasses.asdict(found), "run": parsed.run, "good": not found.damage}
  write_json(parsed.json, record)
  if found.damage:
    raise UserError(
      f"{len(found.damage)} of the {found.files} files of {parsed.run} are damaged; going on "
      "sets newest checkpoints and shards aside; put back good copies of what else is named."
    )


def bench(arguments: list[str]) -> None:
  parsed = parse(Bench, arguments, "jaxzero bench")
  if parsed.what not in ("decode", "search", "selfplay", "train"):
    raise UserError(
      f"there is no benchmark {parsed.what!r}; choose: decode, search, selfplay, train."
    )
  start_jax(cache=False)  # compile times are measured, too
  from jaxzero.bench import decode, search, selfplay, timing, torch_baseline, train

  batches = parsed.batch_sizes or ((1, 8, 64) if parsed.what == "decode" else (64,))
  if parsed.what == "search":
    result = search.bench_search(
      batches,
      parsed.sizes,
      parsed.num_simulations,
      parsed.num_candidates,
      parsed.parallel,
      parsed.repeats,
    )
  elif parsed.what == "selfplay":
    result = selfplay.bench_selfplay(batches, parsed.sizes, parsed.num_simulations, parsed.repeats)
  else:
    bench = decode.bench_decode if parsed.what == "decode" else train.bench_train
    result = bench(batches, parsed.sizes, parsed.repeats)
  print(timing.table(result))
  if parsed.what in ("decode", "train") and not torch_baseline.available():
    print(torch_baseline.HINT)
  write_json(parsed.json, result)
