"""The policy-value transformer: a Llama-shaped decoder with a value head, in Flax NNX.

The layers' parameters are always stacked [L, ...], whatever `scan_layers` says. Training calls
the model on whole sequences; prefill and decode call `extend` on a KV cache. Inside jit, bind the
parameters once (`bind`), and take `model.unstack()` before a decoding loop: slices of the stacked
weights inside the loop would be copied at every step.

Inside `shard_map` over fsdp the parameters may be shards along D. The model sees it by their shape,
and gathers each matrix where it is used, in the compute type: a layer's own inside that layer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from jaxzero.models.attention import attention, rope, rotation
from jaxzero.models.cache import KVCache, init_cache, read, write
from jaxzero.models.config import ModelConfig
from jaxzero.parallel.sharding import RULES, Axes, only, sharding, spec

Params = dict[str, Any]


class Output(NamedTuple):
  """What the network says at each position."""

  logits: jax.Array  # [B, T, V] float32
  value_logits: jax.Array  # [B, T] float32; sigmoid gives P(right)


def _param(key: jax.Array, shape: tuple[int, ...], axes: Axes, fan_in: int | None) -> nnx.Param:
  """A float32 parameter: truncated normal of variance 1/fan_in, or ones where fan_in is None."""
  if fan_in is None:
    return nnx.Param(jnp.ones(shape, jnp.float32), axes=axes)
  value = jax.random.truncated_normal(key, -2.0, 2.0, shape) * (fan_in**-0.5)
  return nnx.Param(value, axes=axes)


def _rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
  x32 = x.astype(jnp.float32)
  normed = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + epsilon)
  return (normed * scale).astype(x.dtype)


def _all_gather(w: jax.Array, axis: int, dtype: str) -> jax.Array:
  """A float32 shard -> the whole in `dtype`."""
  return jax.lax.all_gather(w.astype(dtype), RULES["embed"], axis=axis, tiled=True)


def _scatter(axis: int, dtype: str, _: None, gradient: jax.Array) -> tuple[jax.Array]:
  """The other way: gradients are summed in float32, whatever they were computed in."""
  x = gradient.astype(jnp.float32)
  return (jax.lax.psum_scatter(x, RULES["embed"], scatter_dimension=axis, tiled=True),)


_gather = jax.custom_vjp(_all_gather, nondiff_argnums=(1, 2))
_gather.defvjp(lambda w, axis, dtype: (_all_gather(w, axis, dtype), None), _scatter)


def _whole(w: jax.Array, axes: Axes, embed_dim: int, dtype: str) -> jax.Array:
  """A matrix in `dtype`, with its shards along D gathered."""
  axis = axes.index("embed")
  if w.shape[axis] == embed_dim:
    return w.astype(dtype)
  # Each device of the tensor axis gathers its own columns: left to the compiler, all would be.
  rest = spec(tuple(None if name == "embed" else name for name in axes))
  names = {name for name in rest if name}
  if not names:
    return _gather(w, axis, dtype)
  gather = functools.partial(_gather, axis=axis, dtype=dtype)
  return jax.shard_map(gather, in_specs=rest, out_specs=rest, axis_names=names, check_vma=False)(w)


def _all_but_gathered(primitive, *_, **__) -> bool:
  """A `jax.checkpoint` policy: gathered weights are not kept for the backward pass."""
  return primitive is not jax.lax.all_gather_p


_REMAT_POLICIES = {
  "none": _all_but_gathered,
  "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  "full": jax.checkpoint_policies.nothing_saveable,
}


class Block(NamedTuple):
  """One layer's weights as matrices in the compute dtype; queries, keys and values are one.

  Its columns go by KV head: the head's queries, its key, its value. So a tensor axis splits them
  as it splits the heads, and every device fuses its own part. Inside a layer activations are
  [B * T, D].
  """

  attention_norm: jax.Array  # [D]
  qkv: jax.Array  # [D, K * (N / K + 2) * H]
  qk_norm: jax.Array | None  # [N / K + 1, H]
  o: jax.Array  # [N * H, D]
  ffn_norm: jax.Array  # [D]
  gate: jax.Array  # [D, F]
  up: jax.Array  # [D, F]
  down: jax.Array  # [F, D]

  def __call__(
    self,
    x: jax.Array,
    turn: tuple[jax.Array, jax.Array],
    mask: jax.Array,
    kv_heads: int,
    cache: tuple[jax.Array, jax.Array] | None = None,
    slot: jax.Array | None = None,
    view: jax.Array | None = None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array] | None]:
    """x [B, T, D] -> the same, and this layer's cache with the new keys and values written."""
    shape, x = x.shape, x.reshape(-1, x.shape[-1])
    qkv = self.qkv_of(x)
    q, k, v = self._heads(qkv.reshape(*shape[:2], kv_heads, -1, 2 * turn[0].shape[-1]), turn)
    if cache is None:
      keys, values = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    else:
      assert slot is not None
      keys, values = write(cache[0], k, slot), write(cache[1], v, slot)
      cache = (keys, values)
      if view is not None:
        keys, values = read(keys, view), read(values, view)
    x = self.output(x, attention(q, keys, values, mask).reshape(x.shape[0], -1))
    return x.reshape(shape), cache

  def qkv_of(self, x: jax.Array) -> jax.Array:
    """x [X, D] of any positions -> their queries, keys and values, not turned yet."""
    return _rms_norm(x, self.attention_norm) @ self.qkv

  def output(self, x: jax.Array, attended: jax.Array) -> jax.Array:
    """The rest of the layer after attention: x [X, D], attended [X, N * H] -> [X, D]."""
    x = x + attended @ self.o
    h = _rms_norm(x, self.ffn_norm)
    return x + (jax.nn.silu(h @ self.gate) * (h @ self.up)) @ self.down

  def _heads(self, qkv: jax.Array, turn: tuple[jax.Array, jax.Array]):
    """[B, T, K, N / K + 2, H] -> q [B, T, N, H] and k [B, T, K, H], turned, and v [B, T, K, H]."""
    qk, v = qkv[..., :-1, :], qkv[..., -1, :]
    if self.qk_norm is not None:
      qk = _rms_norm(qk, self.qk_norm)
    qk = rope(qk, turn)
    q = qk[..., :-1, :]
    return q.reshape(*q.shape[:2], -1, q.shape[-1]), qk[..., -1, :], v


class Blocks(nnx.Module):
  """All layers' parameters, stacked [L, ...]: attention and SwiGLU, pre-norm."""

  def __init__(self, config: ModelConfig, layers: int, key: jax.Array):
    self.config = config
    D, N, K, H, F = (
      config.embed_dim,
      config.num_heads,
      config.num_kv_heads,
      config.head_dim,
      config.ffn_dim,
    )
    keys = iter(jax.random.split(key, 7))

    def matrix(shape, axes, fan_in):
      return _param(next(keys), (layers, *shape), ("layers", *axes), fan_in)

    def scale(size, axis):
      return _param(key, (layers, size), ("layers", axis), None)

    self.attention_norm = scale(D, None)
    self.q = matrix((D, N, H), ("embed", "heads", "head_dim"), D)
    self.k = matrix((D, K, H), ("embed", "kv_heads", "head_dim"), D)
    self.v = matrix((D, K, H), ("embed", "kv_heads", "head_dim"), D)
    self.o = matrix((N, H, D), ("heads", "head_dim", "embed"), N * H * 2 * config.num_layers)
    self.ffn_norm = scale(D, None)
    self.gate = matrix((D, F), ("embed", "ffn"), D)
    self.up = matrix((D, F), ("embed", "ffn"), D)
    self.down = matrix((F, D), ("ffn", "embed"), F * 2 * config.num_layers)
    if config.qk_norm:
      self.q_norm = scale(H, "head_dim")
      self.k_norm = scale(H, "head_dim")

  def fuse(self) -> Block:
    """The layer that works with these weights; self must hold one layer, unstacked."""
    config = self.config
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    queries = N // K

    def matrix(w: jax.Array, *axes: str) -> jax.Array:
      return _whole(w, axes, config.embed_dim, config.dtype)

    heads = [w.reshape(len(w), K, -1, H) for w in (self.q[...], self.k[...], self.v[...])]
    qkv = jnp.concatenate(heads, axis=2)
    qk_norm = None
    if config.qk_norm:
      qk_norm = jnp.stack([self.q_norm[...]] * queries + [self.k_norm[...]])
    return Block(
      attention_norm=self.attention_norm[...],
      qkv=matrix(qkv.reshape(len(qkv), -1), "embed", "kv_heads"),
      qk_norm=qk_norm,
      o=matrix(self.o[...].reshape(N * H, -1), "heads", "embed"),
      ffn_norm=self.ffn_norm[...],
      gate=matrix(self.gate[...], "embed", "ffn"),
      up=matrix(self.up[...], "embed", "ffn"),
      down=matrix(self.down[...], "ffn", "embed"),
    )


class PolicyValueTransformer(nnx.Module):
  """tokens -> next-token logits and the logit of P(this episode ends right), at every position."""

  def __init__(self, config: ModelConfig, vocab_size: int, key: jax.Array):
    config.check()
    self.config = config
    self.vocab_size = vocab_size
    D = config.embed_dim
    embed_key, block_key, head_key = jax.random.split(key, 3)
    embed_fan_in = D if config.tie_embeddings else 1
    self.embed = _param(embed_key, (vocab_size, D), ("vocab", "embed"), embed_fan_in)
    self.blocks = Blocks(config, config.num_layers, block_key)
    self.norm = _param(key, (D,), (None,), None)
    if not config.tie_embeddings:
      self.unembed = _param(head_key, (D, vocab_size), ("embed", "vocab"), D)
    self.value = nnx.Param(jnp.zeros((D,), jnp.float32), axes=(None,))
    self.value_bias = nnx.Param(jnp.zeros((), jnp.float32), axes=())

  def __call__(self, tokens: jax.Array, positions: jax.Array, mask: jax.Array) -> Output:
    """Whole sequences, no cache: tokens and positions [B, T] int32, mask [B, T, T] bool."""
    chex.assert_rank([tokens, positions, mask], [2, 2, 3])
    x, turn = self.embed_tokens(tokens), self._rotation(positions)
    blockdef, stacked = nnx.split(self.blocks)

    def layer(x, weights):
      return nnx.merge(blockdef, weights).fuse()(x, turn, mask, self.config.num_kv_heads)[0]

    sharded = self.embed[...].shape[1] != self.config.embed_dim
    if sharded or self.config.remat != "none":
      # What one turn of a loop computes twice cannot be merged with another turn's.
      once = not self.config.scan_layers
      policy = _REMAT_POLICIES[self.config.remat]
      layer = jax.checkpoint(layer, policy=policy, prevent_cse=once)
    if self.config.scan_layers:
      x, _ = jax.lax.scan(lambda x, weights: (layer(x, weights), None), x, stacked)
    else:
      for index in range(self.config.num_layers):
        x = layer(x, jax.tree.map(lambda w, index=index: w[index], stacked))
    return self.heads(x)

  def init_cache(self, batch: int, slots: int) -> KVCache:
    """An empty cache of `slots` positions for each of `batch` sequences."""
    return init_cache(self.config, batch, slots)

  def unstack(self) -> list[Block]:
    """The layers with fused weights; take them outside of the decoding loop."""
    blockdef, stacked = nnx.split(self.blocks)
    return [
      nnx.merge(blockdef, jax.tree.map(lambda w, index=index: w[index], stacked)).fuse()
      for index in range(self.config.num_layers)
    ]

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
    """Puts tokens through the model on top of a cache (prefill, decode, one tree level).

    Args:
      layers: `self.unstack()`.
      cache: KV cache of S slots.
      tokens, positions: [B, T] int32; a position is RoPE's, independent of the slot.
      slot: where the new keys go: a scalar (slots slot..slot+T-1), or [B] with T = 1.
      mask: [B, T, S] bool over slots; it must include the new tokens' own slots.
      view: [B, R] int32 slots to look at instead of all S; the mask is [B, T, R] over them.
    """
    chex.assert_rank([tokens, positions, mask], [2, 2, 3])
    x, turn = self.embed_tokens(tokens), self._rotation(positions)
    new_cache = []
    for layer, layer_cache in zip(layers, cache, strict=True):
      x, written = layer(x, turn, mask, self.config.num_kv_heads, layer_cache, slot, view)
      assert written is not None
      new_cache.append(written)
    return self.heads(x), tuple(new_cache)

  def embed_tokens(self, tokens: jax.Array) -> jax.Array:
    """[B, T] int32 -> [B, T, D] in the compute dtype."""
    table = self.embed[...]
    table = _whole(table, ("vocab", "embed"), self.config.embed_dim, table.dtype.name)
    return table[tokens].astype(self.config.dtype)

  def _rotation(self, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    return rotation(positions, self.config.head_dim, self.config.rope_theta)

  def heads(self, x: jax.Array) -> Output:
    """The last layer's x [B, T, D] -> logits and value logits."""
    x = _rms_norm(x, self.norm[...])
    unembed = self.embed[...].T if self.config.tie_embeddings else self.unembed[...]
    unembed = _whole(unembed, ("embed", "vocab"), self.config.embed_dim, x.dtype.name)
    rows = x.reshape(-1, x.shape[-1])
    logits = jnp.matmul(rows, unembed, preferred_element_type=jnp.float32)
    logits = logits.reshape(*x.shape[:2], -1)
    value_logits = jnp.einsum("BTD,D->BT", x.astype(jnp.float32), self.value[...])
    return Output(logits, value_logits + self.value_bias[...])


@functools.cache
def _abstract(config: ModelConfig, vocab_size: int) -> tuple[nnx.GraphDef, nnx.State]:
  return nnx.split(
    nnx.eval_shape(lambda: PolicyValueTransformer(config, vocab_size, jax.random.key(0)))
  )


def init_params(config: ModelConfig, vocab_size: int, key: jax.Array) -> Params:
  """Random parameters as a nested dict of float32 arrays; jit it with `param_shardings`."""
  model = PolicyValueTransformer(config, vocab_size, key)
  return nnx.to_pure_dict(nnx.split(model)[1])


def bind(config: ModelConfig, vocab_size: int, params: Params) -> PolicyValueTransformer:
  """The NNX module that holds these parameters (call it inside jit; it is free)."""
  graphdef, state = _abstract(config, vocab_size)
  state = jax.tree.map(lambda x: x, state)
  nnx.replace_by_pure_dict(state, params)
  return nnx.merge(graphdef, state)


def abstract_params(config: ModelConfig, vocab_size: int) -> Params:
  """The parameter tree as ShapeDtypeStructs."""
  return nnx.to_pure_dict(_abstract(config, vocab_size)[1])


def param_shardings(config: ModelConfig, vocab_size: int, mesh: Mesh) -> Params:
  """The parameter tree's NamedShardings by the rules table; UserError where sizes do not divide."""
  config.check_mesh(mesh.shape)
  _, state = _abstract(config, vocab_size)

  def of(path: tuple, variable: nnx.Variable):
    name = "parameter " + ".".join(str(getattr(p, "key", p)) for p in path)
    return sharding(mesh, variable.get_metadata("axes"), variable.get_value().shape, name)

  shardings = jax.tree_util.tree_map_with_path(
    of, state, is_leaf=lambda x: isinstance(x, nnx.Variable)
  )
  return _to_dict(shardings)


def param_targets(config: ModelConfig, vocab_size: int, mesh: Mesh) -> Params:
  """ShapeDtypeStructs with shardings: what a checkpoint is restored to."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    abstract_params(config, vocab_size),
    param_shardings(config, vocab_size, mesh),
  )


def gatherer(config: ModelConfig, vocab_size: int, mesh: Mesh) -> Callable[[Params], Params]:
  """A compiled function that makes parameters whole over data and fsdp, as a search holds them.

  Matrices come in the compute type, and move in it; norms and the value head stay float32. The
  split over tensor is kept.
  """
  shardings = param_shardings(config, vocab_size, mesh)

  def cast(x: jax.Array, stored: NamedSharding) -> jax.Array:
    if not set(RULES["embed"]) & set(stored.spec):
      return x
    return jax.lax.with_sharding_constraint(x.astype(config.dtype), stored)

  return jax.jit(
    lambda params: jax.tree.map(cast, params, shardings),
    out_shardings=jax.tree.map(lambda s: NamedSharding(mesh, only(("tensor",), s.spec)), shardings),
  )


def _to_dict(tree: Any) -> Any:
  if hasattr(tree, "items"):
    return {key: _to_dict(child) for key, child in tree.items()}
  return tree
