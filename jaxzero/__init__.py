"""jaxzero: AlphaZero for reasoning language models, in JAX."""

from typing import Any

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
  # Importing the package stays free of jax until something is loaded.
  if name == "load":
    from jaxzero.loading import load

    return load
  raise AttributeError(f"module 'jaxzero' has no attribute {name!r}")
