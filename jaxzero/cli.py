"""The command line: one verb per job a user has. See docs/cli.md."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import pathlib
import runpy
import signal
import sys
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxzero.errors import Preempted, UserError
from jaxzero.progress import silence

if TYPE_CHECKING:
  from jaxzero.recipes.experiment import Experiment

_VERBS = """\
usage: jaxzero VERB [arguments]; `jaxzero VERB --help` tells more

  learn    quickstart                    from random weights to a model that taught itself
           train CONFIG.py               the same stages with a config of your own
  think    solve RUN "2 5 6 = 32"        answer one problem
           eval RUN                      accuracy and cost on held-out problems
  look     report RUN                    write RUN/report.html again
           verify RUN                    check every file of a run
           bench decode|search|selfplay|train   speed beside baselines
"""


@dataclasses.dataclass(frozen=True)
class Solve:
  """Answer one problem: jaxzero solve RUN "2 5 6 = 32" --strategy mcts --budget 512"""

  run: Annotated[str, tyro.conf.Positional]
  problem: Annotated[str, tyro.conf.Positional]
  strategy: str = "mcts"
  budget: int = 512
  """Forward tokens after the prompt; a cap."""
  show_thinking: bool = False
  """Print the hidden reasoning too."""
  seed: int = 0
  json: pathlib.Path | None = None
  """Write one JSON object here."""


@dataclasses.dataclass(frozen=True)
class Eval:
  """Measure a run: jaxzero eval RUN --strategy mcts --budget 256"""

  run: Annotated[str, tyro.conf.Positional]
  strategy: str = "greedy"
  budget: int | None = None
  """Forward tokens per problem after the prompt, a cap; default: the longest completion."""
  problems: int = 500
  split: str = "test"
  stage: str | None = None
  """Checkpoint to measure: pretrain, self_play or control; default: the furthest but control."""
  seed: int = 0
  json: pathlib.Path | None = None
  """Write one JSON object here."""


@dataclasses.dataclass(frozen=True)
class Report:
  """Write a run's page again: jaxzero report RUN"""

  run: Annotated[str, tyro.conf.Positional]


@dataclasses.dataclass(frozen=True)
class Verify:
  """Check every file of a run, changing nothing: jaxzero verify RUN"""

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


def main(arguments: list[str] | None = None) -> None:
  """Runs one verb; exits 0 done, 1 a bug, 2 bad input, 3 stopped by a signal."""
  arguments = sys.argv[1:] if arguments is None else arguments
  for name in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(name, _stop)
  try:
    _run(arguments)
  except Preempted as stop:
    print(
      f"jaxzero: stopped at {stop}; what was done is saved, and the same command continues.",
      file=sys.stderr,
    )
    _leave(3, together=True)
  except UserError as error:
    print(f"jaxzero: {error}", file=sys.stderr)
    _leave(2)
  except BrokenPipeError:  # the reader has seen enough: `jaxzero train --help | head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    _leave(0)
  except Exception:
    traceback.print_exc()
    _leave(1)
  except KeyboardInterrupt:
    print("jaxzero: stopped; the same command continues where it was.", file=sys.stderr)
    _leave(3)


def _leave(code: int, together: bool = False) -> None:
  """Exits.

  Where there are many processes, one that fails alone leaves at once, as jax would wait minutes for
  the others; the first one, whose end ends the others, lets them tell their own reasons before.

  Args:
    together: all processes leave now.
  """
  if "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
    sys.stdout.flush()
    sys.stderr.flush()
    if together:
      sys.modules["jax"].distributed.shutdown()
    elif sys.modules["jax"].process_index() == 0:
      time.sleep(2.0)
    os._exit(code)
  sys.exit(code)


def _run(arguments: list[str]) -> None:
  if not arguments or arguments[0] in ("-h", "--help"):
    print(_VERBS, end="")
    return
  verb, rest = arguments[0], arguments[1:]
  verbs = {
    "quickstart": _quickstart,
    "train": _train,
    "solve": _solve,
    "eval": _eval,
    "report": _report,
    "verify": _verify,
    "bench": _bench,
  }
  if verb not in verbs:
    raise UserError(f"unknown verb {verb!r}; choose one of {', '.join(verbs)}.")
  verbs[verb](rest)


def _start_jax(cache: bool = True) -> None:
  """Joins the hosts where they are configured, and warns of an accelerator left idle."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  warnings.showwarning = lambda message, *_, **__: print(f"jaxzero: {message}", file=sys.stderr)
  # Orbax logs with a traceback what it raises, too.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  import jax

  from jaxzero.parallel.hosts import initialize_hosts, is_primary

  initialize_hosts()
  if not is_primary():
    silence()
  # The cache makes a restarted run start at once; a user's own setting wins.
  if cache and not jax.config.values["jax_compilation_cache_dir"]:
    folder = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", f"{folder}/jaxzero/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  if jax.default_backend() == "cpu" and any(
    pathlib.Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")
  ):
    warnings.warn(
      "an accelerator is present, but jax runs on the CPU; install jaxzero[tpu], "
      "jaxzero[cuda12] or jaxzero[cuda13].",
      stacklevel=1,
    )


def _quickstart(arguments: list[str]) -> None:
  from jaxzero.recipes.experiment import Experiment

  _experiment(Experiment(), arguments, "runs/quickstart", "jaxzero quickstart")


def _train(arguments: list[str]) -> None:
  from jaxzero.recipes.experiment import Experiment

  if arguments and arguments[0] in ("-h", "--help"):
    _experiment(Experiment(), ["--help"], "runs/NAME", "jaxzero train CONFIG.py")
  if not arguments or arguments[0].startswith("-"):
    raise UserError("train needs a config file: jaxzero train configs/smoke.py --run runs/smoke.")
  path = pathlib.Path(arguments[0])
  if not path.is_file():
    raise UserError(f"there is no config file {path}; configs/ holds some to start from.")
  experiment = _config_of(path)
  _experiment(experiment, arguments[1:], f"runs/{path.stem}", f"jaxzero train {path}")


def _config_of(path: pathlib.Path) -> Experiment:
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
  parsed = _parse(Arguments, arguments, name)
  parsed.config.check()
  _start_jax()
  from jaxzero.parallel import preemption
  from jaxzero.parallel.hosts import is_primary
  from jaxzero.recipes.profiler import Window
  from jaxzero.recipes.quickstart import quickstart

  window = None if parsed.profile is None else Window.parse(parsed.profile)
  preemption.listen()
  summary = quickstart(parsed.config, parsed.run, window)
  if is_primary():
    _print_summary(summary, parsed.run)
    _write_json(parsed.json, summary)


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


def _solve(arguments: list[str]) -> None:
  parsed = _parse(Solve, arguments, "jaxzero solve")
  _start_jax()
  from jaxzero.loading import load
  from jaxzero.tasks.transcript import parse_completion
  from jaxzero.view.plots import printable

  run = load(parsed.run)
  begin = time.monotonic()
  result = run.solve(parsed.problem, parsed.strategy, parsed.budget, parsed.seed)
  steps = parse_completion(run.tokenizer, result.tokens)[0].steps
  if parsed.show_thinking:
    print(f"thinking: {printable(' ; '.join(steps))}")
  silent = result.answer is None
  verdict = "right" if result.right else "no answer within the budget" if silent else "wrong"
  print(f"{printable(result.answer or '-')}   ({verdict}; {result.forward_tokens} forward tokens)")
  record: dict[str, Any] = {
    "answer": result.answer,
    "correct": result.right if run.engine.task.self_checkable else None,
    "forward_tokens": result.forward_tokens,
    "wall_s": time.monotonic() - begin,
  }
  if parsed.show_thinking:
    record["thinking"] = list(steps)
  _write_json(parsed.json, record)


def _eval(arguments: list[str]) -> None:
  parsed = _parse(Eval, arguments, "jaxzero eval")
  if parsed.problems < 1:
    raise UserError(f"--problems {parsed.problems} must be at least 1.")
  _start_jax()
  from jaxzero.evals.evaluate import evaluate
  from jaxzero.loading import load

  run = load(parsed.run, parsed.stage)
  config = run.experiment.evaluation
  budget = run.engine.max_tokens if parsed.budget is None else parsed.budget
  problems = run.engine.task.problems(parsed.split, 0, parsed.problems)
  result, _ = evaluate(
    run.engine,
    run.params,
    problems,
    parsed.strategy,
    budget,
    parsed.seed,
    parsed.split,
    run.step,
    run.experiment.test_play,
    min(config.batch_size, parsed.problems),
  )
  low, high = result["ci95"]
  print(
    f"{parsed.strategy}: {result['solved']}/{result['problems']} = {result['accuracy']:.1%} "
    f"(95 % {low:.1%} to {high:.1%}), {result['forward_tokens_per_problem']:.1f} forward tokens "
    f"and {result['flops_per_problem']:.3g} FLOPs a problem, {result['wall_s']:.1f} s"
  )
  _write_json(parsed.json, result)


def _report(arguments: list[str]) -> None:
  parsed = _parse(Report, arguments, "jaxzero report")
  from jaxzero.view.report import write_report

  print(write_report(parsed.run))


def _verify(arguments: list[str]) -> None:
  parsed = _parse(Verify, arguments, "jaxzero verify")
  _start_jax()
  from jaxzero.recipes.verify import verify

  found = verify(parsed.run)
  for finding in found.findings:
    print(f"{'damaged' if finding.harmful else 'harmless'}: {finding.path} {finding.what}")
  print(
    f"{found.files} files, {found.checkpoints} checkpoints, {found.episodes} episodes, "
    f"{found.bytes} bytes read"
  )
  record = {**dataclasses.asdict(found), "run": parsed.run, "good": not found.damage}
  _write_json(parsed.json, record)
  if found.damage:
    raise UserError(
      f"{len(found.damage)} of the {found.files} files of {parsed.run} are damaged; going on "
      "sets newest checkpoints and shards aside; put back good copies of what else is named."
    )


def _bench(arguments: list[str]) -> None:
  parsed = _parse(Bench, arguments, "jaxzero bench")
  if parsed.what not in ("decode", "search", "selfplay", "train"):
    raise UserError(
      f"there is no benchmark {parsed.what!r}; choose: decode, search, selfplay, train."
    )
  _start_jax(cache=False)  # compile times are measured, too
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
  _write_json(parsed.json, result)


def _parse(cls: Any, arguments: list[str], name: str) -> Any:
  """tyro's parser; a typo is an error with exit code 2."""
  parsed = tyro.cli(cls, args=arguments, prog=name)
  path = getattr(parsed, "json", None)  # not every verb has it
  if path is not None and ((path.exists() and not path.is_file()) or not path.parent.is_dir()):
    raise UserError(f"--json {path} is no regular file in an existing folder; give one.")
  return parsed


def _write_json(path: pathlib.Path | None, value: Any) -> None:
  if path is not None:
    from jaxzero.files import write_atomic

    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _stop(*_: object) -> None:
  raise KeyboardInterrupt


if __name__ == "__main__":
  main()
