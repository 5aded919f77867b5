"""Ways of thinking on a budget: `search(engine, params, problems, strategy, budget, seed)`.

A budget is a cap on forward tokens per problem, the prompt not counted. Strategies that may verify
inside (the task decides that from the problem alone) stop at the first verified answer, and give up
a line of thought where the verifier, reading along, knows that it is lost. Without a verifier they
spend the whole budget, and a `Choice` picks among what they finished. No search sees an answer key:
where one decides, answers are graded once all is over.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jaxzero.errors import UserError
from jaxzero.models.transformer import Params
from jaxzero.search import auto, one_tree, tries
from jaxzero.search.choose import Choice
from jaxzero.search.config import Lanes
from jaxzero.search.engine import Engine
from jaxzero.search.plan import Plan
from jaxzero.search.play import PlayConfig
from jaxzero.search.request import Request, SearchResult
from jaxzero.tasks.base import Problem


def _mcts(request: Request) -> list[SearchResult]:
  return (one_tree if request.grows_one_tree else tries).run(request)


def _auto(request: Request) -> list[SearchResult]:
  return auto.run(request, RUNNERS)


RUNNERS: dict[str, Callable[[Request], list[SearchResult]]] = {
  "greedy": tries.run,
  "sample": tries.run,
  "majority": tries.run,
  "best_of_n": tries.run,
  "shared_samples": one_tree.run,
  "without_replacement": one_tree.run,
  "best_first": one_tree.run,
  "beam": tries.run,
  "dvts": tries.run,
  "lookahead": tries.run,
  "mcts": _mcts,
  "auto": _auto,
}
STRATEGIES = tuple(RUNNERS)


def search(
  engine: Engine,
  params: Params,
  problems: Sequence[Problem],
  strategy: str,
  budget: int,
  seed: int = 0,
  play: PlayConfig | None = None,
  batch_size: int = 128,
  temperature: float = 1.0,
  verify_inside: bool | None = None,
  choice: Choice = Choice(),
  samples: int | None = None,
  lanes: Lanes = Lanes(),
  accept: float | None = None,
  plan: Plan | None = None,
) -> list[SearchResult]:
  """Answers problems by one strategy, all batched and jitted.

  Args:
    params: of the engine's model; with a scorer {"policy": ..., "prm": ...}.
    strategy: one of STRATEGIES.
    budget: forward tokens per problem, 1 to 65536; `greedy` and `sample` make one try with it.
      Each position costs one; with a scorer two, one for each model.
    seed: every problem's key folds in its index and the try's.
    play: the tree search's settings.
    temperature: of the policy that is sampled or followed; `greedy` is at 0 whatever it is.
    verify_inside: whether the search hears the verifier; default: as `choice.score` says.
    choice: which of the finished completions is the answer. `majority` votes by count whatever it
      says, and never hears the verifier.
    samples: at most so many tries; default: as many as the budget pays for.
    lanes: how wide `beam`, `dvts` and `lookahead` are. They are tried again, on other seeds, with
      what they leave of the budget.
    accept: strategies that try again, and `auto`, stop where a finished completion scores so much.
    plan: of `auto`; default: `plan.HEARD` or `plan.UNHEARD`.

  Raises:
    UserError: an unknown strategy, a budget that pays for nothing, a seed beyond 31 bits, or
      verifying inside asked of a task whose answers only a key decides.
  """
  if strategy not in RUNNERS:
    raise UserError(f"strategy {strategy!r} is unknown; choose one of {', '.join(STRATEGIES)}.")
  request = Request(
    engine,
    params,
    problems,
    strategy,
    budget,
    seed,
    play,
    batch_size,
    temperature,
    verify_inside,
    choice,
    samples,
    lanes,
    accept,
    plan,
  )
  return RUNNERS[strategy](request) if problems else []
