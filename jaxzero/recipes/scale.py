"""What thinking and training bought: `jaxzero scale` measures a finished run and writes it down.

Every measurement is a cell of the study (`jaxzero.recipes.study`), so one that was stopped goes on
where it was.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from jaxzero.errors import UserError
from jaxzero.evals.curves import BINS, by_bin, compare, rank_bins, rights, token_ratio, trend
from jaxzero.evals.settings import Way, effort
from jaxzero.evals.stats import paired_bootstrap
from jaxzero.files import PathLike, as_path, make_folder, read_bytes, write_atomic
from jaxzero.parallel.hosts import is_primary
from jaxzero.progress import bar
from jaxzero.recipes.agree import differences
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.run import Run, load_experiment, write_json
from jaxzero.recipes.study import ScaleConfig, Study, figures
from jaxzero.recipes.thinkers import Rival, train_flops
from jaxzero.search.request import ONE_TRY
from jaxzero.view.pictures import write_pictures
from jaxzero.view.report import write_report


def scale(folder: PathLike, config: ScaleConfig, larger: Rival | None = None) -> dict[str, Any]:
  """Measures a finished run; returns what RUN/scale.json holds (docs/cli.md).

  Cells are in RUN/scale/, pictures beside them, and the report is written again. What another
  study of this run found is kept in RUN/scale/earlier/, and `auto`'s plans under other rights stay.

  Raises:
    UserError: a study that cannot run, an unfinished run, a larger one of another task, all before
      anything is measured.
  """
  config.check()
  experiment = load_experiment(folder)
  if not (as_path(folder) / "results" / "self_play.json").exists():
    raise UserError(
      f"the run at {folder} has not finished its self-play; let `jaxzero quickstart` or "
      "`jaxzero train` finish it first."
    )
  if larger is not None:
    _same_task(experiment, larger)
  with Run(folder, experiment) as run:
    run.go_on()
    study = Study(run, config)
    result = _record(study, larger)
    if is_primary():
      _keep_earlier(run.folder, result)
    write_json(run.folder / "scale.json", result)
    if study.plans:
      plans = {way.rights: one["plan"] for way, one in study.plans.items()}
      write_json(run.folder / "plan.json", {**_plans(run.folder), **plans})
    if is_primary():
      write_pictures(result, run.folder / "scale")
      write_report(run.folder)
  return result


def _keep_earlier(folder: epath.Path, result: dict[str, Any]) -> None:
  """Copies a scale.json that says something else to RUN/scale/earlier/, and tells so."""
  path = folder / "scale.json"
  try:
    earlier = read_bytes(path)
    same = _lasting(json.loads(earlier)) == _lasting(result)
  except (FileNotFoundError, ValueError):  # none, or torn: nothing to keep
    return
  if not same:
    kept = folder / "scale" / "earlier" / f"{hashlib.sha256(earlier).hexdigest()[:12]}.json"
    make_folder(kept.parent)
    write_atomic(kept, earlier)
    print(f"jaxzero: another study was in {path}; it is kept as {kept}.", file=sys.stderr)


def _lasting(record: dict[str, Any]) -> str:
  """What two runs of one study agree in."""
  found = {name: value for name, value in record.items() if name not in ("ledger", "wall_s")}
  return json.dumps(found, sort_keys=True)


def _plans(folder: epath.Path) -> dict[str, Any]:
  """RUN/plan.json; empty where it is missing or torn."""
  try:
    return json.loads(read_bytes(folder / "plan.json"))
  except (FileNotFoundError, ValueError):
    return {}


def _record(study: Study, larger: Rival | None) -> dict[str, Any]:
  """Everything, measured or read."""
  run, config, begin = study.run, study.config, time.monotonic()
  length = run.engine.max_tokens * config.validation_problems / 1000
  with bar("the mean episode", total=length, unit="k tokens") as study.progress:
    unit = study.set_unit()
  total = study.work(larger is not None)
  with bar("scaling study", total=total, unit="k tokens") as study.progress:
    success = study.success()
    bins = rank_bins(success)
    rows: dict[Way, list[dict[str, Any]]] = {}
    tuned = {way: study.tune(way) for way in study.ways}
    for way in study.ways:
      rows[way] = study.curve(way, tuned[way][0])
    against = _against_larger(study, larger, rows)
    stages = [study.measure(one, Way("greedy")) for one in (study.before, study.final)]
    transfer = [_transfer(study, name) for name in study.others]
  described = [_describe(study, way, rows[way], *tuned[way], bins) for way in study.ways]
  return {
    "task": run.task.name,
    "run_seed": run.experiment.seed,
    "seed": config.seed,
    "stage": "self_play",
    "step": study.final.step,
    "parameters": study.final.identity["parameters"],
    "problems": config.problems,
    "validation_problems": config.validation_problems,
    "unit_tokens": unit,
    "multiples": list(config.budgets),
    "budgets": study.budgets,
    "ways": described,
    "comparisons": _comparisons(study, rows),
    "difficulty": {
      "samples": config.difficulty_samples,
      "bins": [
        {
          "bin": number,
          "problems": int((bins == number).sum()),
          "success": float(success[bins == number].mean()),
        }
        for number in range(BINS)
        if (bins == number).any()
      ],
    },
    "auto": _auto(study, rows),
    "train_time": _train_time(study, stages),
    "larger": against,
    "transfer": transfer,
    "prm": _prm(run),
    "ledger": run.ledger,
    "wall_s": time.monotonic() - begin,
  }


def _describe(
  study: Study,
  way: Way,
  rows: list[dict[str, Any]],
  setting: dict[str, Any],
  tried: list[dict[str, Any]],
  bins: np.ndarray,
) -> dict[str, Any]:
  """A way's entry in scale.json."""
  return {
    "strategy": way.strategy,
    "rights": way.rights,
    "setting": setting,
    "tried": tried,
    "points": [{**figures(row), "by_bin": by_bin(row, bins)} for row in rows],
    "trend": trend(rows, study.config.seed) if len(rows) > 1 else None,
  }


def _comparisons(study: Study, rows: Mapping[Way, list[dict[str, Any]]]) -> list[dict[str, Any]]:
  """Tree search, and the best of N, against all else that has the same rights or none."""
  return [
    {
      "strategy": way.strategy,
      "rights": way.rights,
      "against": other.strategy,
      "points": compare(rows[way], rows[other], study.config.seed),
    }
    for way in rows
    if way.strategy in ("mcts", "best_of_n")
    for other in rows
    if other != way and other.rights in (way.rights, "none") and other.strategy not in ONE_TRY
  ]


def _against_larger(
  study: Study, rival: Rival | None, rows: Mapping[Way, list[dict[str, Any]]]
) -> dict[str, Any] | None:
  """The larger model's greedy answers, and each of the small one's searches against them."""
  if rival is None:
    return None
  greedy = study.measure(rival.thinker, Way("greedy"))
  small = study.measure(study.final, Way("greedy"))
  experiment, ledger = study.run.experiment, study.run.ledger
  return {
    "parameters": rival.parameters,
    "train_flops": rival.train_flops,
    "worked_examples": rival.task.worked_examples,
    "run_seed": rival.seed,
    "test": figures(greedy),
    "small": {
      "parameters": study.final.identity["parameters"],
      "train_flops": train_flops(ledger, "self_play"),
      "worked_examples": experiment.task.worked_examples,
      "run_seed": experiment.seed,
      "test": figures(small),
    },
    "points": [
      {
        "strategy": way.strategy,
        "rights": way.rights,
        "budget": row["budget"],
        "accuracy": row["accuracy"],
        "forward_tokens_per_problem": row["forward_tokens_per_problem"],
        "flops_per_problem": row["flops_per_problem"],
        "train_flops": train_flops(ledger, "self_play", prm=way.rights == "prm"),
        **paired_bootstrap(rights(row), rights(greedy), study.config.seed),
      }
      for way, of_way in rows.items()
      for row in of_way
    ],
  }


def _transfer(study: Study, name: str) -> dict[str, Any]:
  """Both stages' greedy answers to another task's test problems."""
  task, problems = study.others[name]
  rows = {}
  for stage, thinker in (("pretrain", study.before), ("self_play", study.final)):
    rows[stage] = study.measure(thinker.on(task), Way("greedy"), problems=problems)
  after, before = rights(rows["self_play"]), rights(rows["pretrain"])
  change = paired_bootstrap(after, before, study.config.seed)
  return {"task": task.name, **{s: figures(row) for s, row in rows.items()}, "change": change}


def _train_time(study: Study, ends: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Accuracy by cumulative training FLOPs, pre-training and self-play told apart.

  ends: greedy on the test problems after pre-training and after self-play.

  `flops` has the process reward model's, too; the lines and the ends are the policy's alone.
  """
  run = study.run
  stages = {"pretrain": "pretrain", "round": "self_play"}
  before = train_flops(run.ledger, "pretrain")
  after = train_flops(run.ledger, "self_play")
  return {
    "flops": {
      "pretrain": before,
      "self_play": after - before,
      "prm": train_flops(run.ledger, "self_play", prm=True) - after,
    },
    "validation": [
      {
        "stage": stages[row["kind"]],
        "flops": row["flops"],
        "accuracy": row["validation_accuracy"],
      }
      for row in run.metrics
      if row["kind"] in stages and "validation_accuracy" in row
    ],
    "test": [
      {"stage": stage, "flops": flops, **figures(row)}
      for stage, flops, row in zip(("pretrain", "self_play"), (before, after), ends, strict=True)
    ],
  }


def _auto(study: Study, rows: Mapping[Way, list[dict[str, Any]]]) -> dict[str, Any]:
  """What `auto` takes of the forward tokens that best-of-N takes, by rights."""
  return {
    way.rights: {
      "against": other.strategy,
      "against_tried": effort(other),
      **study.plans[way],
      "points": [
        {"budget": row["budget"], **token_ratio(row, rows[other], study.config.seed)}
        for row in rows[way]
      ],
    }
    for way in rows
    if way.strategy == "auto" and (other := Way("best_of_n", way.rights)) in rows
  }


def _prm(run: Run) -> dict[str, Any] | None:
  """RUN/prm.json, for the report; the study has read it before."""
  path = run.folder / "prm.json"
  return json.loads(read_bytes(path)) if path.exists() else None


def _same_task(experiment: Experiment, larger: Rival) -> None:
  there, here = (
    dataclasses.asdict(dataclasses.replace(task, worked_examples=0))
    for task in (larger.task, experiment.task)
  )
  if different := differences(there, here):
    raise UserError(
      f"the larger run has other problems than this one ({', '.join(different)}); give a larger "
      "run of the same task."
    )
