"""Streams of problems: which split a problem belongs to, and how one is drawn from a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

from jaxzero.errors import UserError
from jaxzero.tasks.base import SPLITS, Problem

MAX_REJECTIONS = 20_000


def split_of(canonical: str) -> str:
  """The only split that a canonical problem belongs to: validation 10 %, test 10 %, train 80 %."""
  bucket = int.from_bytes(hashlib.sha256(canonical.encode()).digest()[:8], "big") % 10
  return {0: "validation", 1: "test"}.get(bucket, "train")


def generator(split: str, seed: int, index: int) -> np.random.Generator:
  """The randomness of one problem; UserError where there is no such problem."""
  if split not in SPLITS:
    raise UserError(f"unknown split {split!r}; the splits are: {', '.join(SPLITS)}")
  if seed < 0 or index < 0:
    raise UserError(f"seed={seed} and index={index} must not be negative")
  return np.random.default_rng([seed, SPLITS.index(split), index])


def draw(
  split: str,
  seed: int,
  index: int,
  candidate: Callable[[np.random.Generator], Problem | None],
  canonical: Callable[[Problem], str],
  settings: str,
) -> Problem:
  """The first candidate that is a problem (not None) of the split; pure in (split, seed, index).

  Raises:
    UserError: none turned up in MAX_REJECTIONS draws; `settings` says what was asked for.
  """
  rng = generator(split, seed, index)
  for _ in range(MAX_REJECTIONS):
    problem = candidate(rng)
    if problem is not None and split_of(canonical(problem)) == split:
      return problem
  raise UserError(
    f"no problem of split {split!r} turned up in {MAX_REJECTIONS} draws with {settings}; raise "
    "max_number or max_target"
  )


def first_distinct(
  problem: Callable[[str, int, int], Problem], split: str, seed: int, count: int
) -> list[Problem]:
  """The first `count` distinct problems of a stream; UserError if it has not so many."""
  found: dict[str, Problem] = {}
  index = newest = 0
  while len(found) < count:
    one = problem(split, seed, index)
    if one.id not in found:
      found[one.id] = one
      newest = index
    if index - newest >= MAX_REJECTIONS:
      raise UserError(
        f"split {split!r} has about {len(found)} distinct problems, not {count}; ask for fewer, "
        "or raise numbers, max_number or max_target"
      )
    index += 1
  return list(found.values())


def shown(text: str) -> str:
  """A text as an error quotes it, cut where it is long."""
  return repr(text if len(text) <= 40 else text[:37] + "...")
