"""Verbs that think: solve, eval."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import time
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from jaxzero.cli.shared import parse, start_jax, write_json
from jaxzero.errors import UserError
from jaxzero.search.config import Lanes

if TYPE_CHECKING:
  from jaxzero.loading import LoadedRun
  from jaxzero.search.choose import Choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Thinking:
  """The flags of every verb that thinks."""

  budget: int | None = None
  """Forward tokens per problem after the prompt; a cap."""
  effort: str | None = None
  """Instead of a budget: none, minimal, low, medium, high, xhigh or max."""
  samples: int | None = None
  """At most so many tries; default: as many as the budget pays for."""
  score: str | None = None
  """Who judges completions: verifier or value; default: the verifier where the problem alone
  decides."""
  aggregate: str = "last"
  """A completion's score from its steps': last, min, product or mean."""
  vote: str = "best"
  """The answer from the completions: best, weighted or majority."""
  accept: float | None = None
  """Stop trying where a finished completion scores so much."""
  lanes: Lanes = Lanes()
  prm: bool = False
  """The run's process reward model scores the steps, not the value head."""
  seed: int = 0
  json: pathlib.Path | None = None
  """Write one JSON object here."""

  def check(self) -> None:
    """Raises UserError where budget and effort are both given."""
    if self.budget is not None and self.effort is not None:
      raise UserError(
        f"--budget {self.budget} and --effort {self.effort} both set the budget; give one."
      )

  def tokens(self, run: LoadedRun, default: int) -> int:
    """The budget in forward tokens; UserError for one given below a mean worked completion."""
    from jaxzero.search.budget import Budget

    if self.effort is not None:
      return Budget.of_effort(self.effort, run.engine.longest).forward_tokens
    if self.budget is None:
      return default
    least = math.ceil(run.mean_worked * run.engine.tokens_per_position)
    if Budget(self.budget).forward_tokens < least:
      raise UserError(
        f"budget={self.budget} is below one episode: the run's worked examples take {least} "
        f"forward tokens on average; give at least {least}."
      )
    return self.budget

  def choice(self) -> Choice:
    from jaxzero.search.choose import Choice

    return Choice(self.score, self.aggregate, self.vote)

  def load(self, run: str, stage: str | None = None) -> LoadedRun:
    from jaxzero.loading import load

    loaded = load(run, stage)
    return loaded.scored() if self.prm else loaded


@dataclasses.dataclass(frozen=True)
class Solve(Thinking):
  """Answer one problem: jaxzero solve RUN "2 5 6 = 32" --strategy mcts --budget 512"""

  run: Annotated[str, tyro.conf.Positional]
  problem: Annotated[str, tyro.conf.Positional]
  strategy: str = "mcts"
  show_thinking: bool = False
  """Print the hidden reasoning too."""


@dataclasses.dataclass(frozen=True)
class Eval(Thinking):
  """Measure a run: jaxzero eval RUN --strategy mcts --budget 256"""

  run: Annotated[str, tyro.conf.Positional]
  strategy: str = "greedy"
  problems: int = 500
  split: str = "test"
  stage: str | None = None
  """Checkpoint to measure: pretrain, self_play or control; default: the furthest but control."""


def solve(arguments: list[str]) -> None:
  parsed = parse(Solve, arguments, "jaxzero solve")
  parsed.check()
  start_jax()
  from jaxzero.tasks.transcript import parse_completion
  from jaxzero.view.plots import printable

  run = parsed.load(parsed.run)
  begin = time.monotonic()
  result = run.solve(
    parsed.problem,
    parsed.strategy,
    parsed.tokens(run, default=512),
    parsed.seed,
    parsed.choice(),
    parsed.samples,
    parsed.lanes,
    parsed.accept,
  )
  steps = parse_completion(run.tokenizer, result.tokens)[0].steps
  if parsed.show_thinking:
    print(f"thinking: {printable(' ; '.join(steps))}")
  decided = run.engine.task.self_checkable or result.problem.key is not None
  if result.answer is None:
    verdict = "no answer within the budget"
  else:
    verdict = ("right" if result.right else "wrong") if decided else "nobody knows if it is right"
  print(f"{printable(result.answer or '-')}   ({verdict}; {result.forward_tokens} forward tokens)")
  record: dict[str, Any] = {
    "answer": result.answer,
    "correct": result.right if decided else None,
    "forward_tokens": result.forward_tokens,
    "flops": result.flops,
    "wall_s": time.monotonic() - begin,
  }
  if parsed.show_thinking:
    record["thinking"] = list(steps)
  write_json(parsed.json, record)


def evaluate(arguments: list[str]) -> None:
  parsed = parse(Eval, arguments, "jaxzero eval")
  parsed.check()
  if parsed.problems < 1:
    raise UserError(f"--problems {parsed.problems} must be at least 1.")
  start_jax()
  from jaxzero.evals.evaluate import evaluate

  run = parsed.load(parsed.run, parsed.stage)
  config = run.experiment.evaluation
  problems = run.engine.task.problems(parsed.split, 0, parsed.problems)
  result, _ = evaluate(
    run.engine,
    run.params,
    problems,
    parsed.strategy,
    parsed.tokens(run, default=run.engine.longest),
    parsed.seed,
    parsed.split,
    run.step,
    run.experiment.test_play,
    min(config.batch_size, parsed.problems),
    choice=parsed.choice(),
    samples=parsed.samples,
    lanes=parsed.lanes,
    accept=parsed.accept,
    plan=run.plan(parsed.choice()),
  )
  low, high = result["ci95"]
  print(
    f"{parsed.strategy}: {result['solved']}/{result['problems']} = {result['accuracy']:.1%} "
    f"(95 % {low:.1%} to {high:.1%}), {result['forward_tokens_per_problem']:.1f} forward tokens "
    f"and {result['flops_per_problem']:.3g} FLOPs a problem, {result['wall_s']:.1f} s"
  )
  write_json(parsed.json, result)
