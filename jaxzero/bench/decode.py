"""Plain decoding beside its matrix products alone, and beside transformers' `generate`."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxzero.bench import torch_baseline
from jaxzero.bench.timing import SIZES, VOCAB_SIZE, case, check, interleaved, result
from jaxzero.models.cache import init_cache
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import Block, Params, bind, init_params

PROMPT, NEW = 16, 48


def bench_decode(
  batch_sizes: Sequence[int] = (1, 8, 64), sizes: Sequence[str] = ("0.7M", "5M"), repeats: int = 7
) -> dict[str, Any]:
  """New tokens/s of greedy decoding with random weights, from prompts of 16 to 48 tokens more.

  Every side reads the prompts, too, within the time measured.

  Args:
    batch_sizes, sizes: one case each pair; sizes are names in `timing.SIZES`.
    repeats: timed calls of each, after one to compile.

  Returns:
    See `timing.result`; baselines: `matmul_bound`, the same program without attention and cache;
    `transformers`, its `generate` on PyTorch's CPU, where both are installed.

  Raises:
    UserError: a size below 1 or without a preset.
  """
  check(batch_sizes, sizes, repeats)
  cases = [_case(SIZES[size], batch, repeats) for size in sizes for batch in batch_sizes]
  return result(cases, torch_baseline.packages())


def _case(model: ModelConfig, batch: int, repeats: int) -> dict[str, Any]:
  params = init_params(model, VOCAB_SIZE, jax.random.key(0))
  prompts = jax.random.randint(jax.random.key(1), (batch, PROMPT), 0, VOCAB_SIZE)
  calls: dict[str, Callable[[], Any]] = {
    name: functools.partial(jax.jit(functools.partial(decode, model, extend)), params, prompts)
    for name, extend in (("decode", _with_attention), ("matmul_bound", _without_attention))
  }
  if torch_baseline.available():
    calls["transformers"] = torch_baseline.generate(model, VOCAB_SIZE, batch, PROMPT, NEW)
  seconds = interleaved(calls, repeats)
  return case("decode", model.parameters(VOCAB_SIZE), batch, batch * NEW, seconds)


def decode(model: ModelConfig, extend: Any, params: Params, prompts: jax.Array) -> jax.Array:
  """Greedy: prompts [B, PROMPT] -> new tokens [B, NEW] int32; all rows in step."""
  net = bind(model, VOCAB_SIZE, params)
  layers, rows, slots = net.unstack(), prompts.shape[0], PROMPT + NEW

  def forward(cache, tokens, start):
    positions = start + jnp.arange(tokens.shape[1])
    mask = jnp.broadcast_to(jnp.arange(slots) <= positions[:, None], (*tokens.shape, slots))
    positions = jnp.broadcast_to(positions, tokens.shape)
    output, cache = extend(net, layers, cache, tokens, positions, start, mask)
    return jnp.argmax(output.logits[:, -1], axis=-1), cache

  def step(index, carry):
    cache, token, tokens = carry
    tokens = tokens.at[:, index].set(token)
    token, cache = forward(cache, token[:, None], PROMPT + index)
    return cache, token, tokens

  cache = init_cache(model, rows, slots)
  token, cache = forward(cache, prompts, jnp.int32(0))
  carry = cache, token, jnp.zeros((rows, NEW), jnp.int32)
  _, token, tokens = jax.lax.fori_loop(0, NEW - 1, step, carry)
  return tokens.at[:, NEW - 1].set(token)


def _with_attention(net, *arguments):
  return net.extend(*arguments)


def _without_attention(net, layers: list[Block], cache, tokens, positions, slot, mask):
  """All products and norms; a head's query, key and value are added instead of attended."""
  x = net.embed_tokens(tokens)
  shape, x = x.shape, x.reshape(-1, x.shape[-1])
  for layer in layers:
    qkv = layer.qkv_of(x).reshape(len(x), net.config.num_kv_heads, -1, net.config.head_dim)
    mixed = qkv[:, :, :-2] + qkv[:, :, -2:-1] + qkv[:, :, -1:]
    x = layer.output(x, mixed.reshape(len(x), -1))
  return net.heads(x.reshape(shape)), cache
