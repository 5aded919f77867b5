"""Does self-play beat its controls at equal FLOPs? Three seeds of the quickstart, each with

  (i)  control: more supervised training on the same examples (the quickstart makes it itself);
  (ii) rejection: the policy's own samples, those verified right kept and imitated, in rounds.

Both go on from the same supervised checkpoint and spend the FLOPs that self-play and its learning
spent; both are judged by their best validation. It also asks whether more thinking helps the final
model. `python benchmarks/self_improvement.py --folder runs/study --seeds 0 1 2` (about 20 minutes a
seed on 2 cores; a cell that is finished is not done again) prints the tables of RESULTS.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.evals.evaluate import evaluate
from jaxzero.evals.stats import log_budget_trend, paired_bootstrap, wilson
from jaxzero.files import write_atomic
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.parallel.sharding import shard_batch
from jaxzero.progress import bar
from jaxzero.recipes.experiment import Experiment
from jaxzero.recipes.quickstart import control, evaluate_at, self_play, supervised, trained_steps
from jaxzero.recipes.run import Run, config_dict
from jaxzero.recipes.stages import load_params, train_flops

TEST_PROBLEMS = 800
ARMS = ("supervised", "control", "rejection", "self_play")


@dataclasses.dataclass(frozen=True)
class RejectionConfig:
  """Tuned on validation; the settings tried are in RESULTS.md."""

  samples_per_round: int = 1024
  steps_per_round: int = 16
  batch_size: int = 64
  replay_rounds: int = 8
  supervised_share: float = 0.125
  learning_rate: float = 2e-3
  rounds: int = 50
  """Rounds that the learning rate decays over: those that equal FLOPs allow."""


def rejection(run: Run, flops: float, config: RejectionConfig, evaluate_every: int = 10) -> dict:
  """Rejection sampling for `flops` FLOPs; returns the best-validation parameters' results."""
  experiment, engine = run.experiment, run.engine
  optimizer = OptimizerConfig(learning_rate=config.learning_rate)
  steps = config.steps_per_round * config.rounds
  trainer = Trainer(
    experiment.model, run.tokenizer.vocab_size, optimizer, experiment.improve.loss, run.mesh, steps
  )
  state = trainer.fresh_optimizer(load_params(run, "pretrain", best=True))
  worked = run.worked_examples
  random = np.random.default_rng((experiment.seed, 99))
  rounds: list[list[tuple[np.ndarray, np.ndarray]]] = []
  spent, best, best_params, curve = 0.0, -1.0, None, []
  batch_size = experiment.self_play.batch_size
  with bar("rejection sampling", total=flops / 1e12, unit="TFLOP") as progress:
    while spent < flops:
      before, number, kept = spent, len(rounds), []
      for begin in range(0, config.samples_per_round, batch_size):
        first = number * config.samples_per_round + begin
        problems = [
          run.task.problem("train", experiment.seed * 10 + 5, first + i) for i in range(batch_size)
        ]
        batch = engine.encode(problems, engine.rows(batch_size))
        keys = jax.random.split(
          jax.random.fold_in(jax.random.key(experiment.seed), first), batch_size
        )
        out = engine.decode(state.params, batch, keys, 1.0, verify_inside=True)
        positions = out["positions"].sum() + batch_size * engine.max_prompt
        spent += engine.flops(float(positions))
        for row in np.flatnonzero(out["right"]):
          prompt = batch["prompts"][row, : batch["prompt_length"][row]]
          kept.append((prompt, out["completion"][row, : out["length"][row]]))
      rounds.append(kept)
      pool = [sample for kept in rounds[-config.replay_rounds :] for sample in kept]
      for _ in range(config.steps_per_round):
        arrays = batch_lib.empty(config.batch_size, experiment.context, 1)
        for row in range(config.batch_size):
          source = worked if row < config.batch_size * config.supervised_share else pool
          batch_lib.put_text(arrays, row, *source[random.integers(len(source))])
        state, _ = trainer.train_step(state, shard_batch(run.mesh, batch_lib.to_batch(arrays)))
      spent += config.steps_per_round * train_flops(run, config.batch_size)
      progress.advance((spent - before) / 1e12)
      if (number + 1) % evaluate_every == 0 or spent >= flops:
        accuracy = greedy(run, state.params, run.validation_problems, "validation")["accuracy"]
        curve.append({"flops": spent, "validation_accuracy": accuracy})
        progress.describe(f"rejection sampling, validation {accuracy:.1%}")
        if accuracy > best:
          best, best_params = accuracy, jax.tree.map(lambda x: x.copy(), state.params)
  return {"params": best_params, "curve": curve, "flops": spent}


def greedy(run: Run, params, problems, split: str = "test") -> dict:
  result, results = evaluate(
    run.engine,
    params,
    problems,
    "greedy",
    run.engine.max_tokens,
    split=split,
    batch_size=run.experiment.evaluation.batch_size,
  )
  return {**result, "right": [bool(r.right) for r in results]}


def search_curve(run: Run, params, unit: float) -> dict[str, list]:
  """Who is solved by MCTS and by best-of-N at each budget, verifier inside: [budgets][problems]."""
  config = run.experiment.evaluation
  rights: dict[str, list] = {}
  for strategy in ("mcts", "best_of_n"):
    rights[strategy] = []
    for multiple in config.budgets:
      budget = max(1, round(unit * multiple))
      _, results = evaluate_at(
        run, params, trained_steps(run, "self_play"), run.test_problems, strategy, budget
      )
      rights[strategy].append([bool(result.right) for result in results])
  return rights


def cell(experiment: Experiment, folder: pathlib.Path, config: RejectionConfig) -> dict:
  """One seed: every arm's greedy accuracy on the same test problems."""
  path = folder / "cell.json"
  settings = [config_dict(experiment), dataclasses.asdict(config)]
  if path.exists():
    done = json.loads(path.read_text())
    if done["settings"] != settings:
      raise UserError(f"{path} is of other settings; use another --folder.")
    return done
  with Run(folder / "run", experiment) as run:
    for name, stage in (("supervised", supervised), ("self_play", self_play), ("control", control)):
      run.stage(name, lambda stage=stage: stage(run))
    ledger = run.ledger
    flops = ledger["selfplay"]["flops"] + ledger["learn"]["flops"]
    rejected = rejection(run, flops, config)
    problems = run.task.problems("test", 0, TEST_PROBLEMS)
    params = {
      "supervised": load_params(run, "pretrain", best=True),
      "control": load_params(run, "control", best=True),
      "rejection": rejected["params"],
      "self_play": load_params(run, "self_play"),
    }
    sampled, _ = evaluate(
      run.engine, params["supervised"], problems, "sample", run.engine.max_tokens
    )
    result = {
      "settings": settings,
      "arms": {name: greedy(run, params[name], problems)["right"] for name in ARMS},
      "search": search_curve(run, params["self_play"], sampled["forward_tokens_per_problem"]),
      "budgets": list(experiment.evaluation.budgets),
      "curve": rejected["curve"],
      "flops": {"pretrain": ledger["pretrain"]["flops"], "self_play": flops},
    }
  write_atomic(path, json.dumps(result))
  return result


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
  arguments = parser.parse_args()
  cells = {}
  for seed in arguments.seeds:
    experiment = dataclasses.replace(Experiment(), seed=seed)
    folder = arguments.folder / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    cells[seed] = cell(experiment, folder, RejectionConfig())
  print_table(cells)
  print_search(cells)


def print_table(cells: dict[int, dict]) -> None:
  """Arms by seed (Wilson), then their means over seeds (bootstrap over problems)."""
  print("| seed | " + " | ".join(ARMS) + " |\n|---|" + "---|" * len(ARMS))
  for seed, one in cells.items():
    shown = []
    for arm in ARMS:
      right = np.asarray(one["arms"][arm])
      shown.append(interval(right.mean(), wilson(int(right.sum()), len(right))))
    print(f"| {seed} | " + " | ".join(shown) + " |")
  mean = {arm: np.mean([one["arms"][arm] for one in cells.values()], axis=0) for arm in ARMS}
  none = np.zeros(TEST_PROBLEMS)
  tests = {arm: paired_bootstrap(mean[arm], none, seed=0) for arm in ARMS}
  shown = [interval(test["difference"], test["ci95"]) for test in tests.values()]
  print("| mean | " + " | ".join(shown) + " |\n")
  for arm in ARMS[:-1]:
    test = paired_bootstrap(mean["self_play"], mean[arm], seed=0)
    print(f"- self_play minus {arm}: {interval(test['difference'], test['ci95'])}")


def print_search(cells: dict[int, dict]) -> None:
  budgets = next(iter(cells.values()))["budgets"]
  print("\n| final model | " + " | ".join(f"{b}x" for b in budgets) + " | per doubling |")
  print("|---|" + "---|" * (len(budgets) + 1))
  for strategy in ("mcts", "best_of_n"):
    solved = np.mean([one["search"][strategy] for one in cells.values()], axis=0)
    trend = log_budget_trend(budgets, solved, seed=0)
    shares = " | ".join(f"{share:.1%}" for share in solved.mean(axis=1))
    slope = interval(trend["slope_per_doubling"], trend["ci95"])
    fall = f"worst fall {trend['worst_fall']:.1%}, p {trend['worst_fall_p']:.2f}"
    print(f"| {strategy} | {shares} | {slope}; {fall} |")


def interval(share: float, ci95) -> str:
  return f"{share:.1%} ({ci95[0]:.1%} to {ci95[1]:.1%})"


if __name__ == "__main__":
  main()
