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

NO_PREFIX = -1


class LabelledSteps:
  """Batches of labelled steps; every row is a pure function of (seed, step, row).

  Of four batches three hold prefixes, those that end with one step, with two and so on taking
  turns: each distinct prefix counts the same, however often it was sampled, by the label of its own
  end, and a batch is only as long as such prefixes are. The fourth holds whole completions with all
  of their labels.

  Args:
    length: the model's context, which whole completions are padded to.
    delimiter: the token behind each step but the last.
  """

  PREFIX_TURNS = 3

  def __init__(self, labels: StepLabels, length: int, seed: int, delimiter: int):
    self.labels, self._length = labels, length
    self._whole = Epochs([(row, NO_PREFIX) for row in range(len(labels))], (seed,))
    groups = _distinct_prefixes(labels, delimiter)
    self._groups = [Epochs(groups[steps], (seed, steps)) for steps in sorted(groups)]

  def length(self, step: int) -> int:
    """Positions T of step `step`'s batch."""
    examples, _ = self._turn(step)
    if examples is self._whole:
      return self._length
    longest = max(int(self.labels.prompt_length[row]) + e for row, e in examples.items)
    return min(-(-longest // 8) * 8, self._length)

  def batch(self, step: int, batch_size: int, rows: Sequence[int] | np.ndarray) -> Batch:
    """These rows of step `step`'s batch, as host arrays [len(rows), T, ...]."""
    examples, turn = self._turn(step)
    arrays = batch_lib.empty(len(rows), self.length(step), 1)
    for i, row in enumerate(rows):
      self._put(arrays, i, *examples[turn * batch_size + int(row)])
    return batch_lib.to_batch(arrays)

  def _turn(self, step: int) -> tuple[Epochs[tuple[int, int]], int]:
    """What step `step`'s batch holds, and how many such batches were before it."""
    if not self._groups:
      return self._whole, step
    cycle, turn = divmod(step, self.PREFIX_TURNS + 1)
    if turn == self.PREFIX_TURNS:
      return self._whole, cycle
    number, group = divmod(cycle * self.PREFIX_TURNS + turn, len(self._groups))
    return self._groups[group], number

  def _put(self, arrays: dict[str, np.ndarray], i: int, row: int, end: int) -> None:
    labels = self.labels
    P, C = int(labels.prompt_length[row]), int(labels.length[row] if end == NO_PREFIX else end)
    batch_lib.put_text(arrays, i, labels.prompts[row, :P], labels.tokens[row, :C], weight=0.0)
    ends = np.flatnonzero(np.isfinite(labels.success[row])) if end == NO_PREFIX else [end]
    at = P - 1 + np.asarray(ends)
    arrays["value_target"][i, at] = labels.success[row, ends]
    arrays["value_weight"][i, at] = 1.0


def _distinct_prefixes(labels: StepLabels, delimiter: int) -> dict[int, list[tuple[int, int]]]:
  """Each labelled prefix that ends with a delimiter once, as (row, tokens), by its steps."""
  found: dict[tuple[bytes, bytes], tuple[int, int]] = {}
  groups: dict[int, list[tuple[int, int]]] = {}
  for row, known in enumerate(np.isfinite(labels.success)):
    prompt = labels.prompts[row, : labels.prompt_length[row]].tobytes()
    is_step = labels.tokens[row] == delimiter
    for e in np.flatnonzero(known[1:] & is_step) + 1:
      key = (prompt, labels.tokens[row, :e].tobytes())
      if found.setdefault(key, (row, int(e))) == (row, e):
        groups.setdefault(int(is_step[:e].sum()), []).append((row, int(e)))
  return groups


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
