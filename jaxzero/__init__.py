"""jaxzero: AlphaZero for reasoning language models, in JAX."""
