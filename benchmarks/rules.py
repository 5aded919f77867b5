"""Search distillation, expert iteration or GRPO: which learning rule buys most for equal FLOPs?

All go on from the same supervised parameters (`--base`: finished runs, one a seed, of which the
pre-training is copied and the rest is left alone) and spend the same FLOPs of self-play and
learning; the round that reaches them is the last. Each rule gets eight settings, judged by greedy
accuracy on the first seed's validation problems. The best of each is trained on every seed and
tested once: greedy, and on eight times the longest completion, for a rule may buy greedy accuracy
with lost diversity. There a tree search hears the verifier; where a key decides, majority votes,
for only search distillation trains the value head that would have to choose.

  python benchmarks/rules.py --folder runs/rules --base runs/seed0 runs/seed1 runs/seed2

A finished cell is a JSON file in the folder and is not computed again; one that was stopped goes on
from its last round.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import itertools
import json
import pathlib
import shlex
import shutil
import sys
from typing import Any

import numpy as np

from jaxzero.bench.timing import result as host_and_versions
from jaxzero.errors import UserError
from jaxzero.evals.evaluate import evaluate
from jaxzero.evals.stats import mean_interval, paired_bootstrap
from jaxzero.files import write_atomic
from jaxzero.models.transformer import Params
from jaxzero.progress import bar
from jaxzero.recipes import rules
from jaxzero.recipes.experiment import RULES, Experiment
from jaxzero.recipes.improve import improve
from jaxzero.recipes.run import Run, config_dict, load_experiment
from jaxzero.recipes.stages import BASE_SEED, load_params
from jaxzero.recipes.steps import train_flops
from jaxzero.selfplay.run import play_round

TEST_PROBLEMS = 500
DEEP = 8
SHARED = {
  "self_play.episodes_per_round": 256,
  "self_play.samples": 8,
  "improve.evaluate_every": 10**6,  # the last round is always validated
}
"""Of all rules: rounds small enough for some twenty of them."""


def settings() -> dict[str, list[dict[str, Any]]]:
  """Eight for each rule. GRPO acts with the parameters that its steps move, for what it learns from
  has to be its own; rounds that restart are too short for an average."""
  rate, steps = "improve.optimizer.learning_rate", "improve.steps_per_round"
  share = "improve.solution_share"
  search = itertools.product((1e-3, 2e-3), (16, 32), (0.35, 0.7))
  imitate = itertools.product((1e-3, 2e-3), ((16, False), (32, False), (32, True), (64, True)))
  grpo = itertools.product((5e-4, 2e-3), (8, 24), (0.0, 0.125))
  own = {"improve.optimizer.average_steps": 0}
  return {
    "search": [{rate: r, steps: n, share: s} for r, n, s in search],
    "expert_iteration": [
      {rate: r, steps: n, "improve.replay_rounds": 8}
      | ({"improve.restart": True, **own} if restart else {})
      for r, (n, restart) in imitate
    ],
    "grpo": [{rate: r, steps: n, "improve.supervised_share": s, **own} for r, n, s in grpo],
  }


def changed(config: Any, changes: dict[str, Any]) -> Any:
  """The frozen dataclass with the fields of these dotted names replaced."""
  for name, value in changes.items():
    field, _, rest = name.partition(".")
    value = changed(getattr(config, field), {rest: value}) if rest else value
    config = dataclasses.replace(config, **{field: value})
  return config


def branch(base: pathlib.Path, folder: pathlib.Path, experiment: Experiment) -> None:
  """A run of `experiment` that begins where the base's pre-training ended."""
  if (folder / "config.json").exists():
    return
  shutil.rmtree(folder, ignore_errors=True)  # a copy that was stopped half-way
  for name in ("tokenizer", "checkpoints/pretrain"):
    shutil.copytree(base / name, folder / name)
  (folder / "results").mkdir()
  for name in ("results/supervised.json", "metrics.jsonl"):
    shutil.copy(base / name, folder / name)
  books = json.loads((base / "results/supervised.json").read_text())["books"]
  write_atomic(folder / "ledger.json", json.dumps(books["ledger"]))
  write_atomic(folder / "config.json", json.dumps(config_dict(experiment)))


def affordable_rounds(base: pathlib.Path, folder: pathlib.Path, experiment: Experiment,
                      flops: float) -> int:  # fmt: skip
  """Rounds that the learning rate decays over, from what the first one costs. Searches become
  cheaper as they succeed, so there will be somewhat more."""
  probe = folder / "probe"
  branch(base, probe, experiment)
  with Run(probe, experiment) as run:
    start = load_params(run, "pretrain", best=True)
    seed = experiment.seed * 10 + BASE_SEED["self_play"]
    _, figures = play_round(run.engine, start, rules.playing(experiment), seed, 0, 0)
    learned = experiment.improve.steps_per_round * train_flops(run, experiment.improve.batch_size)
  shutil.rmtree(probe)
  return max(1, round(flops / (figures["flops"] + learned)))


def trained(base: pathlib.Path, folder: pathlib.Path, rule: str, changes: dict[str, Any],
            flops: float) -> dict[str, Any]:  # fmt: skip
  """One setting on one seed: its validation accuracy and what it took."""
  asked = {"rule": rule, "changes": {**SHARED, **changes}, "flops": flops, "base": base.name}
  done = read(folder / "trained.json", asked)
  if done:
    return done
  experiment = changed(load_experiment(base), {**asked["changes"], "improve.rule": rule})
  horizon = read(folder / "rounds.json", asked)
  if not horizon:
    horizon = {"rounds": affordable_rounds(base, folder, experiment, flops)}
    write(folder / "rounds.json", asked, horizon)
  experiment = changed(experiment, {"improve.rounds": horizon["rounds"]})
  branch(base, folder / "run", experiment)
  with Run(folder / "run", experiment) as run:
    improve(run, load_params(run, "pretrain", best=True), flops)
    last = run.metrics[-1]
    cell = {
      "validation": last["validation_accuracy"],
      "rounds": last["round"] + 1,
      "played": run.ledger["selfplay"]["flops"],
      "learned": run.ledger["learn"]["flops"],
      "wall_s": run.goodput.to_dict()["total_s"],
    }
  return write(folder / "trained.json", asked, cell)


def tested(folder: pathlib.Path, trained_cell: dict[str, Any], flops: float) -> dict[str, Any]:
  """Who is solved on the test problems by the last parameters of a trained cell."""
  asked = {"problems": TEST_PROBLEMS, "cell": trained_cell}
  done = read(folder / "tested.json", asked)
  if done:
    return done
  experiment = load_experiment(folder / "run")
  with Run(folder / "run", experiment) as run:
    start = load_params(run, "pretrain", best=True)
    params = improve(run, start, flops)  # nothing is left to do
    return write(folder / "tested.json", asked, outcomes(run, params))


def tested_base(base: pathlib.Path, folder: pathlib.Path) -> dict[str, Any]:
  """The same of the supervised parameters that all start from."""
  asked = {"problems": TEST_PROBLEMS, "base": base.name}
  done = read(folder / "tested.json", asked)
  if done:
    return done
  experiment = load_experiment(base)
  branch(base, folder / "run", experiment)
  with Run(folder / "run", experiment) as run:
    params = load_params(run, "pretrain", best=True)
    return write(folder / "tested.json", asked, outcomes(run, params))


def outcomes(run: Run, params: Params) -> dict[str, list[bool]]:
  """Who is solved, by strategy: `greedy`, and a deep one that asks no value head."""
  problems = run.task.problems("test", 0, TEST_PROBLEMS)
  longest = run.engine.max_tokens
  deep = "mcts" if run.task.self_checkable else "majority"
  right = {}
  for strategy, budget in (("greedy", longest), (deep, DEEP * longest)):
    _, results = evaluate(
      run.engine, params, problems, strategy, budget, seed=run.experiment.seed,
      play=run.experiment.test_play, batch_size=run.experiment.evaluation.batch_size,
    )  # fmt: skip
    right[strategy] = [bool(one.right) for one in results]
  return right


def read(path: pathlib.Path, asked: dict[str, Any]) -> dict[str, Any] | None:
  """A finished cell's result; UserError where it answers another question."""
  if not path.exists():
    return None
  cell = json.loads(path.read_text())
  if cell["asked"] != json.loads(json.dumps(asked)):
    raise UserError(f"{path} is of other settings; use another --folder.")
  return cell["result"]


def write(path: pathlib.Path, asked: dict[str, Any], result: dict[str, Any]) -> dict[str, Any]:
  path.parent.mkdir(parents=True, exist_ok=True)
  write_atomic(path, json.dumps({"asked": asked, "result": result}))
  return result


def study(folder: pathlib.Path, bases: list[pathlib.Path], flops: float, count: int) -> None:
  """All cells, then the tables of RESULTS.md."""
  tuned: dict[str, list[dict[str, Any]]] = {}
  tests: dict[str, list[dict[str, Any]]] = {"supervised": []}
  table = {rule: one[:count] for rule, one in settings().items()}
  total = sum(map(len, table.values())) + len(bases) * (2 * len(RULES) + 1)
  with bar("learning rules", total=total, unit="cells") as progress:
    for rule in RULES:
      tuned[rule] = []
      for number, changes in enumerate(table[rule]):
        cell = folder / f"{rule}-{number}-{bases[0].name}"
        tuned[rule].append(trained(bases[0], cell, rule, changes, flops))
        progress.describe(f"learning rules, {rule} {tuned[rule][-1]['validation']:.1%}")
        progress.advance(1)
    for base in bases:
      tests["supervised"].append(tested_base(base, folder / f"supervised-{base.name}"))
      progress.advance(1)
      for rule in RULES:
        best = chosen(tuned[rule])
        cell = folder / f"{rule}-{best}-{base.name}"
        result = trained(base, cell, rule, table[rule][best], flops)
        progress.advance(1)
        tests.setdefault(rule, []).append({**result, **tested(cell, result, flops)})
        progress.advance(1)
  print_settings(table, tuned)
  print_tests(tests, flops)


def chosen(tuned: list[dict[str, Any]]) -> int:
  return int(np.argmax([one["validation"] for one in tuned]))


def print_settings(table: dict[str, list[dict[str, Any]]], tuned: dict[str, list[dict]]) -> None:
  print("\n| rule | setting | validation | rounds | played | seconds |\n|---|---|---|---|---|---|")
  for rule, cells in tuned.items():
    for number, one in enumerate(cells):
      said = ", ".join(f"{k.rpartition('.')[2]} {v}" for k, v in table[rule][number].items())
      share = one["played"] / (one["played"] + one["learned"])
      mark = "**" if number == chosen(cells) else ""
      print(
        f"| {rule} | {said} | {mark}{one['validation']:.1%}{mark} | {one['rounds']} | {share:.0%} "
        f"of FLOPs | {one['wall_s']:.0f} |"
      )


def print_tests(tests: dict[str, list[dict[str, Any]]], flops: float) -> None:
  """Means over the seeds, and what separates the rules, paired by problem."""
  seeds, kinds = len(tests["supervised"]), list(tests["supervised"][0])
  shares = {
    rule: {kind: np.mean([one[kind] for one in cells], axis=0) for kind in kinds}
    for rule, cells in tests.items()
  }
  print(f"\n| rule | greedy by seed | greedy | {kinds[1]}, {DEEP} x longest | FLOPs spent |")
  print("|---|---|---|---|---|")
  for rule, cells in tests.items():
    by_seed = ", ".join(f"{np.mean(one['greedy']):.1%}" for one in cells)
    shown = [interval(shares[rule][kind]) for kind in kinds]
    paid = [(one["played"] + one["learned"]) / flops for one in cells if "played" in one]
    spent = f"{min(paid):.2f} to {max(paid):.2f} of {flops:.1e}" if paid else "0"
    print(f"| {rule} | {by_seed} | {' | '.join(shown)} | {spent} |")
  print()
  for kind, (a, b) in itertools.product(kinds, itertools.combinations(tests, 2)):
    test = paired_bootstrap(shares[b][kind], shares[a][kind], seed=0)
    low, high = test["ci95"]
    print(f"- {kind}: {b} minus {a} {test['difference']:+.1%} ({low:+.1%} to {high:+.1%})")
  host = host_and_versions([])
  versions = ", ".join(f"{name} {version}" for name, version in host["versions"].items())
  print(
    f"\n`{shlex.join(['python', *sys.argv])}`; {seeds} seeds, {TEST_PROBLEMS} test problems; "
    f"{host['host']['cores']} cores, {host['host']['device']}; {versions}; "
    f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}."
  )


def interval(share: np.ndarray) -> str:
  """share: [n], of the seeds that solved each problem."""
  low, high = mean_interval(share)
  return f"{share.mean():.1%} ({low:.1%} to {high:.1%})"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--base", type=pathlib.Path, nargs="+", required=True, help="one run a seed")
  parser.add_argument("--flops", type=float, default=5e11, help="of self-play and learning")
  parser.add_argument("--settings", type=int, default=8, help="tried for each rule, at most 8")
  parser.add_argument("--seeds", type=int, default=3, help="how many of the bases to test on")
  return parser.parse_args(arguments)


def main() -> None:
  arguments = parse()
  study(arguments.folder, arguments.base[: arguments.seeds], arguments.flops, arguments.settings)


if __name__ == "__main__":
  main()
