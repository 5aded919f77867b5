"""An episode's tokens: prompt `[bos] text [think]`, completion `steps [end_think] answer [end]`."""

from __future__ import annotations

from collections.abc import Sequence

from jaxzero.tasks.base import Completion, Problem, Task, Verdict
from jaxzero.tokenizers import Tokenizer


def encode_prompt(tokenizer: Tokenizer, problem: Problem) -> list[int]:
  """The tokens that a completion follows."""
  return [tokenizer.bos_id, *tokenizer.encode(problem.prompt), tokenizer.think_id]


def encode_completion(tokenizer: Tokenizer, completion: Completion) -> list[int]:
  """The tokens of a finished completion, the end token included."""
  ids: list[int] = []
  for i, step in enumerate(completion.steps):
    ids += [tokenizer.step_id] if i else []
    ids += tokenizer.encode(step)
  return [*ids, tokenizer.end_think_id, *tokenizer.encode(completion.answer), tokenizer.end_id]


def answer_span(tokenizer: Tokenizer, completion_tokens: Sequence[int]) -> tuple[int, int] | None:
  """(start, stop) of the answer's tokens: after the first end_think, before the first end.

  None if the completion is not finished, or ended without leaving its thinking.
  """
  tokens = [int(token) for token in completion_tokens]
  if tokenizer.end_id not in tokens:
    return None
  stop = tokens.index(tokenizer.end_id)
  if tokenizer.end_think_id not in tokens[:stop]:
    return None
  return tokens.index(tokenizer.end_think_id) + 1, stop


def parse_completion(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[Completion, bool]:
  """Reads whatever a model wrote after the prompt.

  A control token where none belongs is spelled by its name, so that no verifier overlooks it.

  Returns:
    The steps and the answer so far, and whether the completion is finished.
  """
  tokens = [int(token) for token in tokens]
  finished = answer_span(tokenizer, tokens) is not None
  if tokenizer.end_id in tokens:
    tokens = tokens[: tokens.index(tokenizer.end_id)]
  thinking, answer = tokens, []
  if tokenizer.end_think_id in tokens:
    at = tokens.index(tokenizer.end_think_id)
    thinking, answer = tokens[:at], tokens[at + 1 :]
  steps: list[list[int]] = [[]] if thinking else []
  for token in thinking:
    if token == tokenizer.step_id:
      steps.append([])
    else:
      steps[-1].append(token)
  completion = Completion(
    steps=tuple(tokenizer.decode(step, controls=True) for step in steps),
    answer=tokenizer.decode(answer, controls=True),
  )
  return completion, finished


def grade(
  task: Task, tokenizer: Tokenizer, problem: Problem, completion_tokens: Sequence[int]
) -> Verdict:
  """The task's verdict on a completion, thinking included; an unfinished one is wrong."""
  completion, finished = parse_completion(tokenizer, completion_tokens)
  if not finished:
    return Verdict(False, "unfinished")
  return task.verify(problem, completion.answer, completion.steps)
