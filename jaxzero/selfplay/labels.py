"""Step labels: how likely the policy is to end right from where each reasoning step ends.

`samples`: the share of completions, sampled from the prefix, that end right (Math-Shepherd's soft
estimation, Wang et al. 2024, eq. 4). `binary_search`: the first step from which none does is found
by bisection; what lies before it counts as 1, what lies behind it as 0, except where samples say
more (OmegaPRM, Luo et al. 2024, section 3.2). Every completion that is sampled on the way is a row
of its own, its verdict one more sample at each step end that it passes.
"""

from __future__ import annotations

import collections
import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.files import PathLike, as_path, make_folder, read_bytes, write_atomic
from jaxzero.models.transformer import Params
from jaxzero.progress import bar
from jaxzero.search.choose import end_tokens
from jaxzero.search.engine import Engine
from jaxzero.search.record import NO_END, path_to
from jaxzero.selfplay.episode import Episode
from jaxzero.tasks.base import Problem
from jaxzero.tasks.transcript import encode_prompt, grade
from jaxzero.tokenizers import Tokenizer

LABELLERS = ("samples", "binary_search")
EXPLORING = 2.0
"""Temperature of samples that look for other steps than the policy's own."""

Tokens = tuple[int, ...]
Prefix = tuple[Problem, Tokens]  # a problem and the completion's tokens so far


@dataclasses.dataclass(frozen=True)
class StepLabels:
  """n completions and P(right) where their steps end; column e: behind e tokens, 0 the prompt."""

  prompts: np.ndarray  # [n, P] int32, padded on the right
  prompt_length: np.ndarray  # [n] int32
  tokens: np.ndarray  # [n, C] int32, padded on the right
  length: np.ndarray  # [n] int32
  success: np.ndarray  # [n, C + 1] float32 in [0, 1]; NaN where no step ends
  right: np.ndarray  # [n] bool, the verdict on the completion
  lost: np.ndarray  # [n] int32: from so many tokens on the verifier knew it lost; C + 1: never

  def __len__(self) -> int:
    return len(self.length)

  def ended(self, tokenizer: Tokenizer) -> np.ndarray:
    """int: the rows whose completion came to its end."""
    last = self.tokens[np.arange(len(self)), np.maximum(self.length - 1, 0)]
    return np.flatnonzero((last == tokenizer.end_id) & (self.length > 0))

  def save(self, path: PathLike) -> None:
    """Writes one npz file, whole or not at all."""
    data = io.BytesIO()
    np.savez_compressed(data, **vars(self))
    make_folder(as_path(path).parent)
    write_atomic(path, data.getvalue())

  @classmethod
  def load(cls, path: PathLike) -> StepLabels:
    """What `save` wrote; UserError if it is missing or damaged."""
    try:
      with np.load(io.BytesIO(read_bytes(path))) as arrays:
        return cls(**arrays)
    except (OSError, ValueError, TypeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
      raise UserError(f"the labels {path} cannot be read ({error}); make them again.") from error


def step_ends(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[int]:
  """How many tokens are read where a step ends: 0 (the prompt's end), then behind each `<step>`,
  `</think>` and, last, `<end>`."""
  ends = [0]
  for e, token in enumerate(tokens, start=1):
    if token in end_tokens(tokenizer):
      ends.append(e)
    if token == tokenizer.end_id:
      break
  return ends


def completions_of(episode: Episode) -> list[Tokens]:
  """The game as played, and whatever else its search tree brought to an end, right or wrong."""
  tree = episode.tree
  ends = np.flatnonzero(tree.verdict != NO_END).tolist()
  texts = [tuple(tree.token[path_to(tree, end)].tolist()) for end in ends]
  return list(dict.fromkeys([tuple(episode.tokens.tolist()), *texts]))


def label(
  engine: Engine,
  params: Params,
  given: Sequence[tuple[Problem, Sequence[Tokens]]],
  labeller: str = "samples",
  rollouts: int = 8,
  samples: int = 8,
  explored: int = 16,
  seed: int = 0,
  batch_size: int = 64,
  progress: Callable[[], Any] = lambda: None,
) -> tuple[StepLabels, dict[str, float]]:
  """Labels the steps of given completions, and of fresh ones, by what the policy makes of them.

  Args:
    params: the policy's, gathered or not.
    given: problems, with completions of each (stored games); none is needed.
    rollouts: K, completions sampled from each prefix of a step or more.
    samples: completions sampled from each bare prompt; they are labelled like given ones.
    explored: the same at temperature EXPLORING, for steps that the policy seldom takes; what
      becomes of these says nothing of the policy and is not counted.
    batch_size: prefixes that are rolled out together.
    progress: called between batches.

  Returns:
    labels, one row a distinct completion, and the cost: `rollouts`, `rollouts_exhaustive` (what
    `samples` would have asked for), `forward_tokens` and `flops` (of prompts and idle rows, too).

  Raises:
    UserError: an unknown labeller, or counts below 1.
  """
  if labeller not in LABELLERS:
    raise UserError(f"labeller {labeller!r} is unknown; choose one of {', '.join(LABELLERS)}.")
  if min(rollouts, samples) < 1 or explored < 0:
    raise UserError(
      f"rollouts={rollouts} and samples={samples} must be at least 1, explored={explored} at least "
      "0."
    )
  tried = Tried(engine, params, rollouts, seed, batch_size, progress)
  # To their very end, as at test time: what follows an error must be seen, too.
  prompts: list[Prefix] = [(problem, ()) for problem, _ in given]
  tried.measure(prompts, samples, verify_inside=False)
  beyond = tried.explore(prompts, explored)
  chosen: dict[Prefix, None] = {}
  for problem, texts in given:
    fresh = (*tried.sampled[problem, ()], *beyond.get((problem, ()), ()))
    chosen |= dict.fromkeys((problem, text) for text in (*texts, *fresh))
  asked = {prefix for one in chosen for prefix in tried.prefixes(*one)} - tried.lost
  exhaustive = tried.cost["rollouts"] + rollouts * len(asked - tried.sampled.keys())
  guesses: dict[Prefix, float] = {}
  if labeller == "samples":
    tried.measure(prefix for one in chosen for prefix in tried.prefixes(*one))
  else:
    guesses = _bisected(tried, list(chosen))
  cost = {**tried.cost, "rollouts_exhaustive": exhaustive}
  everything = chosen | dict.fromkeys(
    (problem, text) for (problem, _), texts in tried.sampled.items() for text in texts
  )
  return make_table(engine, tried, list(everything), guesses), cost


def first_errors(tried: Tried, completions: Sequence[Prefix]) -> list[int]:
  """For each completion the index, among its step ends, of the first one from which no sample ends
  right, by bisection: it is taken for granted that behind such a step none does. The number of its
  step ends where there is none, or where only the verdict tells.
  """
  ends = [tried.prefixes(*one) for one in completions]
  # Behind `low` all is possible, from `high` on nothing is; a right completion has no error.
  high = [len(of_one) for of_one in ends]
  low = [
    last - 1 if tried.is_right(one) else -1 for one, last in zip(completions, high, strict=True)
  ]
  while open_ := [i for i in range(len(ends)) if high[i] - low[i] > 1]:
    middle = {i: (low[i] + high[i]) // 2 for i in open_}
    tried.measure(ends[i][at] for i, at in middle.items())
    for i, at in middle.items():
      if tried.share(ends[i][at]) > 0:
        low[i] = at
      else:
        high[i] = at
  return high


def _bisected(tried: Tried, completions: list[Prefix]) -> dict[Prefix, float]:
  """1 before each completion's first error and 0 from it on, where no samples were asked for and
  none that passed ended right; a prefix of several completions counts as 1 if one of them does well
  from there."""
  guesses: dict[Prefix, float] = {}
  for one, error in zip(completions, first_errors(tried, completions), strict=True):
    for index, prefix in enumerate(tried.prefixes(*one)):
      if prefix not in tried.sampled and not tried.share(prefix) > 0:
        guesses[prefix] = max(guesses.get(prefix, 0.0), float(index < error))
  return guesses


class Tried:
  """What became of the completions that were sampled, by the prefixes that they passed."""

  def __init__(
    self,
    engine: Engine,
    params: Params,
    rollouts: int,
    seed: int,
    batch_size: int,
    progress: Callable[[], Any] = lambda: None,
  ):
    self.engine, self.params = engine, engine.gather(params)
    self.rollouts, self.progress = rollouts, progress
    self.rows = engine.rows(batch_size)
    self.sampled: dict[Prefix, list[Tokens]] = {}
    self.lost: set[Prefix] = set()
    self.cost = {"rollouts": 0.0, "forward_tokens": 0.0, "flops": 0.0}
    self._verdicts: dict[Prefix, bool] = {}
    self._right: collections.Counter[Prefix] = collections.Counter()
    self._passed: collections.Counter[Prefix] = collections.Counter()
    self._key, self._asked = jax.random.key(seed), 0

  def prefixes(self, problem: Problem, tokens: Tokens) -> list[Prefix]:
    """Those that end with a step of this completion, but not its own end: the verdict tells."""
    ends = step_ends(self.engine.tokenizer, tokens)
    is_whole = tokens[-1:] == (self.engine.tokenizer.end_id,)
    return [(problem, tokens[:e]) for e in (ends[:-1] if is_whole else ends)]

  def share(self, prefix: Prefix) -> float:
    """Right ones among the sampled completions that passed a prefix, 0 where it is lost; NaN where
    none did."""
    if prefix in self.lost:
      return 0.0
    passed = self._passed[prefix]
    return self._right[prefix] / passed if passed else float("nan")

  def is_right(self, completion: Prefix) -> bool:
    """The task's verdict."""
    if completion not in self._verdicts:
      engine = self.engine
      verdict = grade(engine.task, engine.tokenizer, *completion)
      self._verdicts[completion] = verdict.right
    return self._verdicts[completion]

  def measure(
    self, prefixes: Iterable[Prefix], count: int | None = None, verify_inside: bool = True
  ) -> None:
    """Samples completions from each of them that has none yet and is not known to be lost.

    count: how many from each; default: K.
    verify_inside: a completion ends where the verifier, reading along, knows that it is lost.
    """
    asked = dict.fromkeys(prefixes)
    new = [one for one in asked if one not in self.sampled and one not in self.lost]
    count = count or self.rollouts
    for prefix, texts, rights in self._roll_out(new, count, 1.0, verify_inside):
      self.sampled[prefix] = texts
      for text, right in zip(texts, rights, strict=True):
        self._count(prefix, text, right)

  def explore(self, prefixes: Sequence[Prefix], count: int) -> dict[Prefix, list[Tokens]]:
    """Completions of each prefix that the policy seldom writes, up to where they are lost."""
    if not count:
      return {}
    tried = self._roll_out(list(prefixes), count, EXPLORING, verify_inside=True)
    return {prefix: texts for prefix, texts, _ in tried}

  def _roll_out(
    self, prefixes: list[Prefix], count: int, temperature: float, verify_inside: bool
  ) -> Iterator[tuple[Prefix, list[Tokens], list[bool]]]:
    """For each prefix its samples, and whether they are right."""
    engine = self.engine
    # Rows of one batch wait for each other, so those of like length go together.
    ordered = sorted(prefixes, key=lambda prefix: len(prefix[1]))
    with bar("sampling completions", len(ordered) * count, "rollouts") as shown:
      for begin in range(0, len(ordered), self.rows):
        some = ordered[begin : begin + self.rows]
        batch = engine.encode([problem for problem, _ in some], self.rows)
        batch["completion"] = np.zeros((self.rows, engine.max_tokens), np.int32)
        batch["length"] = np.zeros(self.rows, np.int32)
        for row, (_, tokens) in enumerate(some):
          batch["completion"][row, : len(tokens)] = tokens
          batch["length"][row] = len(tokens)
        # Keys by the order of asking, which is a function of the seed and what is asked alone.
        numbers = np.arange(self.rows) + self._asked
        self._asked += len(some)
        keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(self._key, numbers)
        out: Any = engine.roll_out(self.params, batch, keys, count, temperature, verify_inside)
        written = (out.length - batch["length"][:, None])[: len(some)]
        self.cost["rollouts"] += written.size
        self.cost["forward_tokens"] += float(written.sum())
        self.cost["flops"] += engine.flops(float(out.positions.sum()))
        for row, prefix in enumerate(some):
          pairs = zip(out.completion[row].tolist(), out.length[row].tolist(), strict=True)
          texts = [tuple(tokens[:length]) for tokens, length in pairs]
          for text, alive in zip(texts, out.alive[row].tolist(), strict=True):
            passed = self.prefixes(prefix[0], text)
            self.lost.update(one for one in passed if len(one[1]) > alive)
          yield prefix, texts, out.right[row].tolist()
        shown.advance(len(some) * count)
        self.progress()

  def _count(self, start: Prefix, tokens: Tokens, right: bool) -> None:
    problem = start[0]
    self._verdicts[problem, tokens] = right
    for prefix in self.prefixes(problem, tokens):
      if len(prefix[1]) >= len(start[1]):
        self._passed[prefix] += 1
        self._right[prefix] += right


def make_table(
  engine: Engine, tried: Tried, completions: list[Prefix], guesses: dict[Prefix, float]
) -> StepLabels:
  n, C, tokenizer = len(completions), engine.max_tokens, engine.tokenizer
  labels = StepLabels(
    prompts=np.full((n, engine.max_prompt), tokenizer.pad_id, np.int32),
    prompt_length=np.zeros(n, np.int32),
    tokens=np.full((n, C), tokenizer.pad_id, np.int32),
    length=np.asarray([len(tokens) for _, tokens in completions], np.int32),
    success=np.full((n, C + 1), np.nan, np.float32),
    right=np.asarray([tried.is_right(one) for one in completions], bool),
    lost=np.full(n, C + 1, np.int32),
  )
  encoded: dict[str, list[int]] = {}
  for row, (problem, tokens) in enumerate(completions):
    if problem.id not in encoded:
      encoded[problem.id] = encode_prompt(tokenizer, problem)
    prompt = encoded[problem.id]
    labels.prompts[row, : len(prompt)], labels.prompt_length[row] = prompt, len(prompt)
    labels.tokens[row, : len(tokens)] = tokens
    for prefix in tried.prefixes(problem, tokens):
      labels.success[row, len(prefix[1])] = guesses.get(prefix, tried.share(prefix))
      if prefix in tried.lost:
        labels.lost[row] = min(labels.lost[row], len(prefix[1]))
    if tokens[-1:] == (tokenizer.end_id,):
      labels.success[row, len(tokens)] = labels.right[row]
  return labels
