"""The policy-value transformer, its attention and its KV cache."""
