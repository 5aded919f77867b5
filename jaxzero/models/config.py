"""The model's shape, and what it costs: parameters and FLOPs counted from the shape alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxzero.errors import UserError


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """A Llama-shaped decoder. The vocabulary's size comes from the tokenizer, not from here."""

  num_layers: int = 3
  embed_dim: int = 128
  num_heads: int = 4
  num_kv_heads: int = 2
  head_dim: int = 32
  ffn_dim: int = 384
  rope_theta: float = 10_000.0
  tie_embeddings: bool = False
  qk_norm: bool = False
  dtype: str = "float32"
  """Compute type; parameters, logits and values are always float32."""
  scan_layers: bool = False
  remat: str = "none"
  """What a layer computes again in the backward pass instead of keeping it: none; dots: all but the
  results of its matrix products; full: everything. Gathered weights are never kept."""

  def check(self) -> None:
    """Raises UserError where the shape is impossible."""
    sizes = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if field.type == "int"
    }
    for name, size in sizes.items():
      if size < 1:
        raise UserError(f"--model.{name.replace('_', '-')}={size} must be at least 1.")
    if self.num_heads % self.num_kv_heads:
      raise UserError(
        f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.num_kv_heads}."
      )
    if self.head_dim % 2:
      raise UserError(f"head_dim={self.head_dim} must be even: RoPE turns pairs.")
    if self.dtype not in ("float32", "bfloat16"):
      raise UserError(f"dtype={self.dtype!r} is unknown; use float32 or bfloat16.")
    if self.remat not in ("none", "dots", "full"):
      raise UserError(f"remat={self.remat!r} is unknown; use none, dots or full.")

  def check_mesh(self, mesh: Mapping[str, int]) -> None:
    """Raises UserError where the shape does not divide over a mesh of these axis sizes."""
    for name, axis in (
      ("embed_dim", "fsdp"),
      ("num_heads", "tensor"),
      ("num_kv_heads", "tensor"),
      ("ffn_dim", "tensor"),
    ):
      size, devices = getattr(self, name), mesh[axis]
      if size % devices:
        raise UserError(
          f"--model.{name.replace('_', '-')}={size} does not divide over --mesh.{axis}={devices}; "
          f"use a multiple of {devices} or a smaller {axis} axis."
        )

  def layer_parameters(self) -> int:
    """Weights in the matrices of one layer."""
    attention = self.embed_dim * self.head_dim * 2 * (self.num_heads + self.num_kv_heads)
    return attention + 3 * self.embed_dim * self.ffn_dim

  def parameters(self, vocab_size: int) -> int:
    """All trainable numbers, norms and heads included."""
    norms = self.num_layers * (2 * self.embed_dim + (2 * self.head_dim if self.qk_norm else 0))
    tables = vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)
    return (
      self.num_layers * self.layer_parameters() + norms + tables + self.embed_dim * 2 + 1
    )  # final norm; value head with its bias

  def flops_per_token(self, vocab_size: int, context: float) -> float:
    """FLOPs of one forward position that attends to `context` positions (multiply-add = 2).

    Training costs three times as much. Norms, softmax and RoPE are left out (below 5 %).
    """
    matmul = self.num_layers * self.layer_parameters() + (vocab_size + 1) * self.embed_dim
    attention = 2 * self.num_layers * context * self.num_heads * self.head_dim
    return 2.0 * (matmul + attention)
