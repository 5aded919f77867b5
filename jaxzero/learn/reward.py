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
from jaxzero.tokenizers import Tokenizer

WHOLE_EVERY = 4
ROUND_UP = 8


class LabelledSteps:
  """Batches of labelled steps; every row is a pure function of (seed, step, row).

  Of four batches three hold prefixes that end with a step and are not known to be lost. Each
  distinct one is as likely as any other, however often it was sampled, and counts by the label of
  its own end; those of one batch are of like length, so that it is no longer than they are. The
  fourth holds completions that came to their end, with all of their labels.

  Args:
    length: the model's context, which whole completions are padded to.
  """

  def __init__(self, labels: StepLabels, length: int, seed: int, tokenizer: Tokenizer):
    self.labels, self.length, self.seed = labels, length, seed
    self._whole = Epochs(labels.ended(tokenizer).tolist() or range(len(labels)), (seed,))
    prefixes = distinct_prefixes(labels, tokenizer.step_id)
    longest = [labels.prompt_length[row] + e for row, e in prefixes]
    padded = np.minimum(-(-np.asarray(longest, int) // ROUND_UP) * ROUND_UP, length)
    self._alike = {int(T): prefixes[padded == T] for T in np.unique(padded)}

  def batch(self, step: int, batch_size: int, rows: Sequence[int] | np.ndarray) -> Batch:
    """These rows of step `step`'s batch, as host arrays [len(rows), T, ...]."""
    if not self._alike or step % WHOLE_EVERY == WHOLE_EVERY - 1:
      before = (step // WHOLE_EVERY if self._alike else step) * batch_size
      arrays = batch_lib.empty(len(rows), self.length, 1)
      for i, row in enumerate(rows):
        self._put_whole(arrays, i, self._whole[before + int(row)])
      return batch_lib.to_batch(arrays)
    random = np.random.default_rng((self.seed, step))
    sizes = np.asarray([len(some) for some in self._alike.values()])
    length = int(random.choice(list(self._alike), p=sizes / sizes.sum()))
    drawn = self._alike[length][random.integers(len(self._alike[length]), size=batch_size)]
    arrays = batch_lib.empty(len(rows), length, 1)
    for i, row in enumerate(rows):
      self._put_prefix(arrays, i, *drawn[int(row)])
    return batch_lib.to_batch(arrays)

  def _put_whole(self, arrays: dict[str, np.ndarray], i: int, row: int) -> None:
    ends = np.flatnonzero(np.isfinite(self.labels.success[row]))
    self._put(arrays, i, row, int(self.labels.length[row]), ends)

  def _put_prefix(self, arrays: dict[str, np.ndarray], i: int, row: int, end: int) -> None:
    self._put(arrays, i, row, end, np.asarray([end]))

  def _put(
    self, arrays: dict[str, np.ndarray], i: int, row: int, read: int, ends: np.ndarray
  ) -> None:
    labels, P = self.labels, int(self.labels.prompt_length[row])
    batch_lib.put_text(arrays, i, labels.prompts[row, :P], labels.tokens[row, :read], weight=0.0)
    arrays["value_target"][i, P - 1 + ends] = labels.success[row, ends]
    arrays["value_weight"][i, P - 1 + ends] = 1.0


def distinct_prefixes(labels: StepLabels, delimiter: int) -> np.ndarray:
  """[m, 2] int, (row, tokens read): each labelled prefix that ends with a delimiter and may not be
  lost, once."""
  found: dict[tuple[bytes, bytes], tuple[int, int]] = {}
  for row, known in enumerate(np.isfinite(labels.success)):
    prompt = labels.prompts[row, : labels.prompt_length[row]].tobytes()
    ends = np.flatnonzero(known[1:] & (labels.tokens[row] == delimiter)) + 1
    for e in ends[ends < labels.lost[row]]:
      found.setdefault((prompt, labels.tokens[row, :e].tobytes()), (row, int(e)))
  return np.asarray(list(found.values()), int).reshape(-1, 2)


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
