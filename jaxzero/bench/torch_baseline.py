"""The same Llama in transformers on PyTorch's CPU: `generate` with a cache, and a training step."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxzero.models.config import ModelConfig

HINT = "without PyTorch and transformers as a baseline: pip install -e '.[bench]'"


def available() -> bool:
  """Whether the baseline can run here; imports nothing."""
  return all(importlib.util.find_spec(name) for name in ("torch", "transformers"))


def packages() -> tuple[str, ...]:
  """Whose versions a result tells."""
  return ("torch", "transformers") if available() else ()


def generate(
  config: ModelConfig, vocab_size: int, batch: int, prompt: int, new: int
) -> Callable[[], Any]:
  """A call that greedily generates `new` tokens behind `batch` random prompts."""
  import torch

  model = _llama(config, vocab_size, prompt + new).eval()
  tokens = torch.randint(3, vocab_size, (batch, prompt))
  lengths = {"max_new_tokens": new, "min_new_tokens": new}
  tokens_and_mask = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
  settings = {"do_sample": False, "use_cache": True, "pad_token_id": 0, "eos_token_id": None}

  def call():
    with torch.inference_mode():
      return model.generate(**tokens_and_mask, **lengths, **settings).numpy()

  return call


def train_step(config: ModelConfig, vocab_size: int, tokens: np.ndarray) -> Callable[[], Any]:
  """A call that takes one AdamW step of next-token loss on tokens [B, T], clipped by norm."""
  import torch

  model = _llama(config, vocab_size, tokens.shape[1]).train()
  optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.1)
  inputs = torch.tensor(tokens, dtype=torch.long)

  def call():
    optimizer.zero_grad(set_to_none=True)
    loss = model(input_ids=inputs, labels=inputs, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()

  return call


def parameters(config: ModelConfig, vocab_size: int) -> int:
  """How many the baseline has: ours without the value head."""
  return sum(p.numel() for p in _llama(config, vocab_size, 8).parameters())


def _llama(config: ModelConfig, vocab_size: int, length: int) -> Any:
  from transformers import LlamaConfig, LlamaForCausalLM

  shape = LlamaConfig(
    vocab_size=vocab_size,
    hidden_size=config.embed_dim,
    intermediate_size=config.ffn_dim,
    num_hidden_layers=config.num_layers,
    num_attention_heads=config.num_heads,
    num_key_value_heads=config.num_kv_heads,
    head_dim=config.head_dim,
    max_position_embeddings=length,
    tie_word_embeddings=config.tie_embeddings,
  )
  return LlamaForCausalLM(shape)
