"""The command line: one verb per job a user has. See docs/cli.md."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback

from jaxzero.errors import Preempted, UserError

_VERBS = """\
usage: jaxzero VERB [arguments]; `jaxzero VERB --help` tells more

  learn    quickstart                    from random weights to a model that taught itself
           train CONFIG.py               the same stages with a config of your own
           prm RUN                       train and grade a process reward model
           distill RUN --student C.py    a smaller model from a run's data set
  think    solve RUN "2 5 6 = 32"        answer one problem
           eval RUN                      accuracy and cost on held-out problems
  look     report RUN                    write RUN/report.html again
           verify RUN                    check every file of a run, or of exported data
           export-data RUN --out FOLDER  its trees and paths as Parquet
           bench decode|search|selfplay|train   speed beside baselines
"""

_FUNCTIONS = {
  "quickstart": "learn.quickstart",
  "train": "learn.train",
  "prm": "prm.prm",
  "distill": "distill.distill",
  "solve": "think.solve",
  "eval": "think.evaluate",
  "report": "look.report",
  "verify": "look.verify",
  "export-data": "data.export_data",
  "bench": "look.bench",
}
"""Where each verb's function is: module of this package, function of its arguments."""


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
  if verb not in _FUNCTIONS:
    raise UserError(f"unknown verb {verb!r}; choose one of {', '.join(_FUNCTIONS)}.")
  module, function = _FUNCTIONS[verb].split(".")
  getattr(importlib.import_module(f"jaxzero.cli.{module}"), function)(rest)


def _stop(*_: object) -> None:
  raise KeyboardInterrupt
