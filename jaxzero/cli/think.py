"""Verbs that think: solve, eval."""

from __future__ import annotations

import dataclasses
import pathlib
import time
from typing import Annotated, Any

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json
from jaxzero.errors import UserError


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


def solve(arguments: list[str]) -> None:
  parsed = parse(Solve, arguments, "jaxzero solve")
  start_jax()
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
  write_json(parsed.json, record)


def evaluate(arguments: list[str]) -> None:
  parsed = parse(Eval, arguments, "jaxzero eval")
  if parsed.problems < 1:
    raise UserError(f"--problems {parsed.problems} must be at least 1.")
  start_jax()
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
  write_json(parsed.json, result)
