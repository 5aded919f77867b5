"""What a teacher would play where it is known to win: soft targets along verified completions.

At state s_j of a verified completion a_0 .. a_{H-1} the target is the teacher's policy pi, given
that the game is won. With q(s, a) = P(right | s, a) and the teacher playing on, Bayes' rule says

  w(a | s_j) = pi(a | s_j) q(s_j, a) / V(s_j),    V(s_j) = sum_a pi(a | s_j) q(s_j, a).        (1)

It is control as inference (Levine 2018, section 2), and what imitating right samples of the teacher
comes to in the mean. V is backed up along the completion as in Tree Backup (Precup et al. 2000):

  q(s_j, a_j) = V(s_{j+1}), V(s_H) = 1;    q(s_j, b) = R_b + (1 - R_b - W_b) v(s_j b),         (2)

where v is the value head, and R_b and W_b are the shares of the policy's mass below b whose ends
the stored tree knows to be right and wrong; the verifier's word on b itself stands above v. As in
Reanalyze (Schrittwieser et al. 2020), pi and v are the final teacher's, not those of the time of
play. Tokens that are no candidates are one bucket, whose q is v(s_j).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.models.cache import init_cache
from jaxzero.models.transformer import Params, bind
from jaxzero.parallel.hosts import fetch
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search.engine import Engine
from jaxzero.search.record import Record, masses
from jaxzero.tasks.base import Problem

CANDIDATES = 8
"""Tokens with a target of their own at each state: the completion's and the likeliest others."""
_ROWS = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Verified:
  """A completion that the search found and the verifier called right: `nodes` of its tree."""

  problem: Problem
  prompt: np.ndarray  # [P] int32
  tokens: np.ndarray  # [H] int32
  tree: Record
  nodes: list[int]  # [H]


class Target(NamedTuple):
  """What to learn at the H states of a completion."""

  candidates: np.ndarray  # [H, A] int32, the completion's own token first
  weights: np.ndarray  # [H, A + 1] float32, sums to 1; last the rest of the vocabulary


class Opinion(NamedTuple):
  """What the teacher says along B completions of up to C tokens; A candidates."""

  candidates: Any  # [B, C, A] int32, the completion's own token first
  log_pi: Any  # [B, C, A] float32
  values: Any  # [B, C, A] float32: P(right) after each candidate: the verifier's, else the head's
  state_values: Any  # [B, C] float32: the head's P(right) before it


class Teacher:
  """A trained model asked about whole completions, a batch in one prefill and one forward."""

  def __init__(self, engine: Engine, params: Params, candidates: int = CANDIDATES):
    self.engine = engine
    self.candidates = min(candidates, engine.tokenizer.vocab_size)
    self._params = engine.gather(params)
    self._verifier = engine.task.device_verifier(engine.tokenizer)
    self._opinion = jax.jit(self._opine)

  @property
  def positions(self) -> int:
    """Positions put through the model for each completion: itself, and every candidate."""
    engine = self.engine
    return engine.max_prompt + engine.max_tokens * (1 + self.candidates)

  def flops(self, count: int) -> float:
    """FLOPs of `count` completions; masked slots count."""
    model, vocab_size = self.engine.model, self.engine.tokenizer.vocab_size
    return count * self.positions * model.flops_per_token(vocab_size, self.positions)

  def targets(
    self, completions: Sequence[Verified], progress: Callable[[float], Any] = lambda count: None
  ) -> list[Target]:
    """The soft targets of some completions, in their order, on every host."""
    out: list[Target] = []
    rows = self.engine.rows(min(_ROWS, max(1, len(completions))))
    for begin in range(0, len(completions), rows):
      batch = completions[begin : begin + rows]
      opinion = self.opinions(batch, rows)
      out += [target(one, _row(opinion, i)) for i, one in enumerate(batch)]
      progress(len(batch))
    return out

  def opinions(self, batch: Sequence[Verified], rows: int) -> Opinion:
    """Host arrays of `rows` rows, the first of them the batch's."""
    engine = self.engine
    encoded = engine.encode([one.problem for one in batch], rows)
    tokens = np.zeros((rows, engine.max_prompt + engine.max_tokens), np.int32)
    completion = np.zeros((rows, engine.max_tokens), np.int32)
    for i, one in enumerate(batch):
      P, H = len(one.prompt), len(one.tokens)
      tokens[i, : P + H] = [*one.prompt, *one.tokens]
      completion[i, :H] = one.tokens
    arrays = {
      "tokens": tokens,
      "completion": completion,
      "prompt_length": np.maximum(encoded["prompt_length"], 1),
      "facts": encoded["facts"],
    }
    return fetch(self._opinion(self._params, shard_batch(engine.mesh, arrays)))

  def _opine(self, params: Params, batch: dict[str, jax.Array]) -> Opinion:
    engine, A = self.engine, self.candidates
    model = bind(engine.model, engine.tokenizer.vocab_size, params)
    layers = model.unstack()
    tokens, path = batch["tokens"], batch["completion"]
    (B, T), C = tokens.shape, path.shape[1]
    cache = init_cache(engine.model, B, T + C * A)
    slots = jnp.arange(T + C * A)
    causal = jnp.broadcast_to(slots <= jnp.arange(T)[:, None], (B, T, T + C * A))
    at = jnp.broadcast_to(jnp.arange(T), (B, T))
    said, cache = model.extend(layers, cache, tokens, at, jnp.int32(0), causal)

    # State j is read off the token before the completion's token j.
    depth = batch["prompt_length"][:, None] + jnp.arange(C)  # [B, C]
    before = jnp.minimum(depth, T) - 1
    logits = jnp.take_along_axis(said.logits, before[..., None], axis=1)
    log_p = jax.nn.log_softmax(logits)
    own = jax.nn.one_hot(path, log_p.shape[-1], dtype=bool)
    _, candidates = jax.lax.top_k(jnp.where(own, jnp.inf, log_p), A)

    # Every candidate of every state in one forward; it sees the path before it, and itself.
    flat, position = candidates.reshape(B, C * A), jnp.repeat(depth, A, axis=1)
    sees = (slots < position[..., None]) & (slots < T)
    sees |= slots == T + jnp.arange(C * A)[:, None]
    leaves, _ = model.extend(layers, cache, flat, position, jnp.int32(T), sees)
    heads = jax.nn.sigmoid(leaves.value_logits).reshape(B, C, A)
    return Opinion(
      candidates=candidates,
      log_pi=jnp.take_along_axis(log_p, candidates, axis=-1),
      values=self._judged(batch["facts"], path, candidates, heads),
      state_values=jax.nn.sigmoid(jnp.take_along_axis(said.value_logits, before, axis=1)),
    )

  def _judged(
    self, facts: jax.Array, path: jax.Array, candidates: jax.Array, values: jax.Array
  ) -> jax.Array:
    """The value head's `values` [B, C, A] of candidates, but where the verifier knows better."""
    verifier = self._verifier

    def read(state: jax.Array, token: jax.Array) -> tuple[jax.Array, jax.Array]:
      return verifier.read(state, token), state

    _, states = jax.lax.scan(read, verifier.start(facts), path.T)  # [C, B, S]
    states = jnp.broadcast_to(
      jnp.moveaxis(states, 0, 1)[:, :, None], (*candidates.shape, states.shape[-1])
    )
    after = verifier.read(states, candidates)
    right = verifier.right(after)
    last = jnp.arange(path.shape[1])[:, None] == path.shape[1] - 1  # no room for another token
    over = verifier.lost(after) | (candidates == self.engine.tokenizer.end_id) | last
    return jnp.where(right, 1.0, jnp.where(over, 0.0, values))


def target(completion: Verified, opinion: Opinion) -> Target:
  """Equations (1) and (2) for one completion and what the teacher says of it, [C, ...]."""
  H = len(completion.tokens)
  pi = np.exp(opinion.log_pi[:H].astype(np.float64))
  q = opinion.values[:H].astype(np.float64)
  rest = np.maximum(1.0 - pi.sum(axis=1), 0.0)
  right, wrong = masses(completion.tree)
  edges = zip(completion.tree.parent.tolist(), completion.tree.token.tolist(), strict=True)
  children = {edge: node for node, edge in enumerate(edges)}
  weights = np.zeros((H, pi.shape[1] + 1))
  value = 1.0
  for j in range(H - 1, -1, -1):
    state = completion.nodes[j - 1] if j else 0
    for a, token in enumerate(opinion.candidates[j].tolist()):
      child = children.get((state, token))
      if child is not None:
        q[j, a] = right[child] + max(1.0 - right[child] - wrong[child], 0.0) * q[j, a]
    q[j, 0] = value
    weights[j] = [*(pi[j] * q[j]), rest[j] * opinion.state_values[j]]
    value = float(weights[j].sum())
    weights[j] /= value
  return Target(opinion.candidates[:H], weights.astype(np.float32))


def _row(opinion: Opinion, row: int) -> Opinion:
  return Opinion(*(x[row] for x in opinion))
