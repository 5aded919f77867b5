"""What a model says of problems before it thinks about them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxzero.models.transformer import Params
from jaxzero.search.engine import Engine
from jaxzero.tasks.base import Problem


def foresee(
  engine: Engine, params: Params, problems: Sequence[Problem], batch_size: int
) -> tuple[np.ndarray, int]:
  """P(right) of a try at each problem [n] float32, and the positions that asking took: prompts
  alone are read, never an answer key.

  Args:
    params: gathered or not.
  """
  params, rows = engine.gather(params), engine.rows(min(batch_size, len(problems)))
  asked = [dataclasses.replace(problem, key=None) for problem in problems]
  parts = [asked[begin : begin + rows] for begin in range(0, len(asked), rows)]
  values = [engine.foresee(params, engine.encode(part, rows))[0][: len(part)] for part in parts]
  return np.concatenate(values), len(parts) * rows * engine.max_prompt
