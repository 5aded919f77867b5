"""What a student learns from a run's data set: verified completions, by their tokens or by what
the teacher would play along them, worked examples, and games as played for the value."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from jaxzero.errors import UserError
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.batch import Batch
from jaxzero.learn.epochs import Epochs
from jaxzero.learn.teacher import Target, Verified
from jaxzero.search.record import RIGHT, Record, path_to
from jaxzero.selfplay.episode import Episode
from jaxzero.tasks.base import Problem, Task
from jaxzero.tokenizers import Tokenizer

VALUE_SHARE = 0.125
"""Of the rows that are not worked examples: games as they were played, for the value alone."""


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  targets: Literal["paths", "trees", "both"] = "paths"
  """paths: the tokens of the data set's verified completions; trees: the final teacher thinks about
  its problems again, and what it would play along all right ends of a tree, given that it wins, is
  learned; both: half the tokens of those ends, half the targets."""
  nodes: int = 160
  """Of the trees that the teacher grows for soft targets."""
  steps: int = 1500
  batch_size: int = 64
  supervised_share: float = 0.125
  """Share of each batch that is worked examples; 1: nothing else, the control."""
  rounds: int = 0
  """Newest rounds of the data set that are read; 0: all."""
  stage: str | None = None
  """The teacher: pretrain, self_play or control; default: the furthest but control."""
  evaluate_every: int = 100
  """Steps between validations; each also saves a checkpoint."""
  seed: int = 0
  """Of the student's first parameters and of the order of its lessons."""

  def check(self) -> None:
    """Raises UserError for a training that cannot run."""
    for name, least in (
      ("nodes", 2),
      ("steps", 1),
      ("batch_size", 1),
      ("rounds", 0),
      ("evaluate_every", 1),
    ):
      if getattr(self, name) < least:
        option = name.replace("_", "-")
        raise UserError(f"--{option} {getattr(self, name)} must be at least {least}.")
    if self.nodes > 65_536:
      raise UserError(f"--nodes {self.nodes} must be at most 65536.")
    if not 0.0 <= self.supervised_share <= 1.0:
      raise UserError(f"--supervised-share {self.supervised_share} must lie between 0 and 1.")
    if not 0 <= self.seed <= 10**8:
      raise UserError(f"--seed {self.seed} must lie in 0..{10**8}.")

  @property
  def soft(self) -> bool:
    """Whether the teacher is asked: not in the control."""
    return self.targets != "paths" and self.supervised_share < 1


def verified(episodes: Iterable[Episode], task: Task) -> list[Verified]:
  """Every right end of every tree, each completion of a problem once (the newest of its trees)."""
  found: dict[tuple[str, tuple[int, ...]], Verified] = {}
  for episode in episodes:
    for one in right_ends(task.parse(episode.prompt), episode.prompt_tokens, episode.tree):
      found[episode.problem_id, tuple(one.tokens.tolist())] = one
  return list(found.values())


def right_ends(problem: Problem, prompt: np.ndarray, tree: Record) -> list[Verified]:
  """Every right end of a tree; prompt [P] int32."""
  paths = [path_to(tree, end) for end in np.flatnonzero(tree.verdict == RIGHT).tolist()]
  return [Verified(problem, prompt, tree.token[nodes], tree, nodes) for nodes in paths]


class Lessons:
  """Batches whose every row is a pure function of (seed, step, row), whoever makes it.

  The first rows are worked examples, the next games as played, the others verified completions.

  Args:
    worked: (prompt, completion) token lists.
    games: episodes in the student's tokens.
    completions: (prompt, completion) tokens of the student.
    targets: the soft targets of the completions; none for hard targets alone.
    length: the student's context.
  """

  def __init__(
    self,
    config: DistillConfig,
    worked: Sequence[tuple[list[int], list[int]]],
    games: Sequence[Episode],
    completions: Sequence[tuple[list[int], list[int]]],
    targets: Sequence[Target] | None,
    length: int,
  ):
    self.config, self.targets, self.length = config, targets, length
    self.worked = Epochs(worked, (config.seed, 0))
    self.games = Epochs(games, (config.seed, 1))
    self.numbers = Epochs(range(len(completions)), (config.seed, 2))
    self.completions = completions
    share = config.supervised_share
    self.supervised = round(config.batch_size * share)
    self.played = round((config.batch_size - self.supervised) * VALUE_SHARE)
    self.candidates = targets[0].candidates.shape[1] if targets else 1

  def batch(self, step: int, rows: Sequence[int] | np.ndarray) -> Batch:
    """These rows of step `step`'s batch, as host arrays [len(rows), ...]."""
    arrays = batch_lib.empty(len(rows), self.length, self.candidates)
    for i, row in enumerate(map(int, rows)):
      if row < self.supervised:
        batch_lib.put_text(arrays, i, *self.worked[step * self.supervised + row])
      elif row < self.supervised + self.played:
        game = self.games[step * self.played + row - self.supervised]
        batch_lib.put_episode(arrays, i, game)
        arrays["hard_weight"][i] = 0.0
      else:
        first = self.supervised + self.played
        number = step * (self.config.batch_size - first) + row - first
        self._put_completion(arrays, i, self.numbers[number])
    return batch_lib.to_batch(arrays)

  def _put_completion(self, arrays: dict[str, np.ndarray], i: int, number: int) -> None:
    prompt, completion = self.completions[number]
    hard = {"paths": 1.0, "both": 0.5, "trees": 0.0}[self.config.targets]
    batch_lib.put_text(arrays, i, prompt, completion, hard)
    if self.targets is not None:
      moves = slice(len(prompt) - 1, len(prompt) + len(completion) - 1)
      arrays["candidates"][i, moves], arrays["soft_target"][i, moves] = self.targets[number]
      arrays["soft_weight"][i, moves] = 1.0 - hard


def translate(tokens: Iterable[int], source: Tokenizer, target: Tokenizer) -> list[int]:
  """Tokens of one tokenizer in those of another: the same text between the same control tokens."""
  controls = {
    getattr(source, name): getattr(target, name)
    for name in ("pad_id", "bos_id", "end_id", "think_id", "end_think_id", "step_id")
  }
  out: list[int] = []
  text: list[int] = []
  for token in map(int, tokens):
    if token not in controls:
      text.append(token)
      continue
    out += [*target.encode(source.decode(text)), controls[token]]
    text = []
  return out + target.encode(source.decode(text))
