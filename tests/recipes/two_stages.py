"""`jaxzero train` of test_many_hosts, as its worker: supervised training and self-play alone."""

from __future__ import annotations

import sys
from typing import Any

import jaxzero.recipes.quickstart as quickstart_lib
from jaxzero import cli
from jaxzero.recipes.improve import improve
from jaxzero.recipes.run import Run
from jaxzero.recipes.stages import fit_supervised, load_params


def two_stages(experiment: Any, folder: Any, profile: Any = None) -> None:
  with Run(folder, experiment, profile) as run:
    run.stage("supervised", lambda: {"done": bool(fit_supervised(run, "pretrain"))})
    start = load_params(run, "pretrain", best=True)
    run.stage("self_play", lambda: {"done": bool(improve(run, start))})
  cli._leave(0, together=True)


if __name__ == "__main__":
  quickstart_lib.quickstart = two_stages
  cli.main(sys.argv[1:])
