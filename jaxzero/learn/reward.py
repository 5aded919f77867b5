"""The process reward model (PRM): a policy-value transformer of its own whose value logit, where a
reasoning step ends, is the logit of P(right) from there (Lightman et al. 2023; soft labels as in
Wang et al. 2024, eq. 5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxzero.learn import batch as batch_lib
from jaxzero.learn.batch import Batch
from jaxzero.learn.epochs import Epochs
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Params, bind, gatherer
from jaxzero.parallel.hosts import fetch
from jaxzero.parallel.mesh import batch_shards
from jaxzero.parallel.sharding import shard_batch
from jaxzero.selfplay.labels import StepLabels


class LabelledSteps:
  """Batches of labelled completions; every row is a pure function of (seed, step, row).

  Args:
    length: the model's context.
    token_weight: of the labels inside of steps, where the next step end's holds, too; those of step
      ends weigh 1.
    with_text: right completions are text to imitate, too.
  """

  def __init__(
    self, labels: StepLabels, length: int, seed: int, token_weight: float, with_text: bool
  ):
    self.labels, self.length, self.with_text = labels, length, with_text
    self._rows = Epochs(range(len(labels)), (seed,))
    ends = np.isfinite(labels.success)
    columns = np.where(ends, np.arange(ends.shape[1]), ends.shape[1])
    following = np.minimum.accumulate(columns[:, ::-1], axis=1)[:, ::-1]
    # Behind the last step end of a row nothing is known.
    padded = np.pad(np.nan_to_num(labels.success), ((0, 0), (0, 1)))
    self._targets = np.take_along_axis(padded, following, axis=1)
    is_known = following < ends.shape[1]
    self._weights = np.where(ends, 1.0, token_weight * is_known).astype(np.float32)

  def batch(self, step: int, batch_size: int, rows: Sequence[int] | np.ndarray) -> Batch:
    """These rows of step `step`'s batch, as host arrays [len(rows), ...]."""
    arrays = batch_lib.empty(len(rows), self.length, 1)
    for i, row in enumerate(rows):
      self._put(arrays, i, self._rows[step * batch_size + int(row)])
    return batch_lib.to_batch(arrays)

  def _put(self, arrays: dict[str, np.ndarray], i: int, row: int) -> None:
    labels = self.labels
    P, C = int(labels.prompt_length[row]), int(labels.length[row])
    text_weight = float(self.with_text and labels.right[row])
    batch_lib.put_text(arrays, i, labels.prompts[row, :P], labels.tokens[row, :C], text_weight)
    arrays["value_target"][i, P - 1 : P + C] = self._targets[row, : C + 1]
    arrays["value_weight"][i, P - 1 : P + C] = self._weights[row, : C + 1]


class StepScorer:
  """Scores the steps of whole completions by a model's value logits, in one forward a batch."""

  def __init__(self, model: ModelConfig, vocab_size: int, mesh: Mesh, batch_size: int = 256):
    self.mesh, self.gather = mesh, gatherer(model, vocab_size, mesh)
    shards = batch_shards(mesh)
    self.rows = -(-batch_size // shards) * shards

    def forward(params: Params, tokens: jax.Array) -> jax.Array:
      B, T = tokens.shape
      positions = jnp.broadcast_to(jnp.arange(T), (B, T))
      mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
      output = bind(model, vocab_size, params)(tokens, positions, mask)
      return jax.nn.sigmoid(output.value_logits)

    self._forward: Callable[[Params, jax.Array], jax.Array] = jax.jit(forward)

  def __call__(self, params: Params, labels: StepLabels) -> np.ndarray:
    """[n, C + 1] float32: P(right) behind every token; column 0 is the prompt's end."""
    params, (n, C) = self.gather(params), labels.tokens.shape
    length = labels.prompts.shape[1] + C
    texts = np.zeros((-(-n // self.rows) * self.rows, length), np.int32)
    rows, columns = np.arange(n)[:, None], np.arange(C)
    texts[:n, : labels.prompts.shape[1]] = labels.prompts
    texts[rows, labels.prompt_length[:, None] + columns] = labels.tokens
    scores = np.concatenate(
      [
        fetch(self._forward(params, shard_batch(self.mesh, texts[begin : begin + self.rows])))
        for begin in range(0, len(texts), self.rows)
      ]
    )
    return scores[rows, labels.prompt_length[:, None] - 1 + np.arange(C + 1)]


def cross_entropy(scores: np.ndarray, labels: StepLabels) -> float:
  """Mean binary cross-entropy of scores [n, C + 1] to the labels, in nats a step end."""
  known = np.isfinite(labels.success)
  p = np.clip(scores[known].astype(np.float64), 1e-7, 1 - 1e-7)
  target = labels.success[known]
  return float(-np.mean(target * np.log(p) + (1 - target) * np.log(1 - p)))
