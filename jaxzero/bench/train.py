"""The train step beside PyTorch's on the same shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxzero.bench import torch_baseline
from jaxzero.bench.timing import SIZES, VOCAB_SIZE, case, check, interleaved, result
from jaxzero.learn import batch as batch_lib
from jaxzero.learn.losses import LossConfig
from jaxzero.learn.train import OptimizerConfig, Trainer
from jaxzero.models.config import ModelConfig
from jaxzero.parallel.mesh import MeshConfig, make_mesh

PROMPT, LENGTH, CANDIDATES = 16, 46, 8


def bench_train(
  batch_sizes: Sequence[int] = (64,), sizes: Sequence[str] = ("0.7M", "5M"), repeats: int = 7
) -> dict[str, Any]:
  """Positions/s of one optimizer step on worked examples of 46 tokens.

  Ours computes the soft targets' and the value's losses, too, as in every stage of a run.

  Args:
    batch_sizes, sizes: one case each pair; sizes are names in `timing.SIZES`.
    repeats: timed calls of each, after one to compile.

  Returns:
    See `timing.result`; baseline `pytorch`: transformers' Llama with AdamW on the CPU, where it is
    installed.

  Raises:
    UserError: a size below 1 or without a preset.
  """
  check(batch_sizes, sizes, repeats)
  cases = [_case(SIZES[size], batch, repeats) for size in sizes for batch in batch_sizes]
  return result(cases, torch_baseline.packages())


def _case(model: ModelConfig, rows: int, repeats: int) -> dict[str, Any]:
  arrays = batch_lib.empty(rows, LENGTH, CANDIDATES)
  texts = np.random.default_rng(0).integers(3, VOCAB_SIZE, (rows, LENGTH))
  for row, text in enumerate(texts):
    batch_lib.put_text(arrays, row, text[:PROMPT], text[PROMPT:])
  mesh = make_mesh(MeshConfig(), jax.devices()[:1])
  trainer = Trainer(model, VOCAB_SIZE, OptimizerConfig(), LossConfig(), mesh, steps=1000)
  batch = jax.device_put(batch_lib.to_batch(arrays))
  state = trainer.init(jax.random.key(0))

  def step():
    nonlocal state
    state, metrics = trainer.train_step(state, batch)
    return state, metrics

  calls: dict[str, Any] = {"train": step}
  if torch_baseline.available():
    calls["pytorch"] = torch_baseline.train_step(model, VOCAB_SIZE, texts)
  seconds = interleaved(calls, repeats)
  return case("train", model.parameters(VOCAB_SIZE), rows, rows * LENGTH, seconds)
