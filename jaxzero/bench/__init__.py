"""Benchmarks: how fast, always beside a baseline that was timed in the same minutes."""
