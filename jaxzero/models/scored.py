"""A policy with a process reward model beside it, as one model: two networks read every token.

The search sees what it sees of a `PolicyValueTransformer`: the logits are the policy's, the value
logits the reward model's (Lightman et al. 2023: P(right) at each step's end).
"""

from __future__ import annotations

import jax

from jaxzero.models.cache import KVCache
from jaxzero.models.transformer import Block, Output, PolicyValueTransformer


class ScoredModel:
  """`policy` proposes, `prm` scores; both have the same vocabulary, and a cache each."""

  def __init__(self, policy: PolicyValueTransformer, prm: PolicyValueTransformer):
    self.policy, self.prm = policy, prm
    self.vocab_size = policy.vocab_size

  def init_cache(self, batch: int, slots: int) -> KVCache:
    """The policy's layers' caches, then the reward model's."""
    return self.policy.init_cache(batch, slots) + self.prm.init_cache(batch, slots)

  def unstack(self) -> list[Block]:
    """The policy's layers, then the reward model's."""
    return [*self.policy.unstack(), *self.prm.unstack()]

  def extend(
    self,
    layers: list[Block],
    cache: KVCache,
    tokens: jax.Array,
    positions: jax.Array,
    slot: jax.Array,
    mask: jax.Array,
    view: jax.Array | None = None,
  ) -> tuple[Output, KVCache]:
    """As `PolicyValueTransformer.extend`; what nobody reads of either model is never computed."""
    split, where = self.policy.config.num_layers, (tokens, positions, slot, mask, view)
    said, policy_cache = self.policy.extend(layers[:split], cache[:split], *where)
    scored, prm_cache = self.prm.extend(layers[split:], cache[split:], *where)
    return Output(said.logits, scored.value_logits), policy_cache + prm_cache


Model = PolicyValueTransformer | ScoredModel
"""What a search runs on."""
