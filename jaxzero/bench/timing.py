"""Interleaved medians, the one form of every benchmark's result, and its table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import jax

from jaxzero.errors import UserError
from jaxzero.models.config import ModelConfig

VOCAB_SIZE = 281  # of the Countdown tokenizer
SIZES = {
  "0.4M": ModelConfig(num_layers=2, num_kv_heads=2, ffn_dim=320),
  "0.7M": ModelConfig(),  # the quickstart's
  "5M": ModelConfig(num_layers=6, embed_dim=256, num_heads=8, num_kv_heads=4, ffn_dim=768),
  "13M": ModelConfig(num_layers=8, embed_dim=384, num_heads=12, num_kv_heads=4, ffn_dim=1024),
  "30M": ModelConfig(num_layers=10, embed_dim=512, num_heads=16, num_kv_heads=4, ffn_dim=1408),
}


def check(batch_sizes: Sequence[int], sizes: Sequence[str], repeats: int) -> None:
  """Raises UserError where there is nothing to measure or a size has no preset."""
  if not batch_sizes or min((*batch_sizes, repeats)) < 1:
    raise UserError(f"batch_sizes={batch_sizes} and repeats={repeats} must be at least 1.")
  unknown = [size for size in sizes if size not in SIZES]
  if unknown or not sizes:
    raise UserError(f"sizes={list(sizes)}: choose from {', '.join(SIZES)}.")


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
  """Median seconds of each call, taken in turn so that a noisy moment falls on all of them."""
  times: dict[str, list[float]] = {name: [] for name in calls}
  for call in calls.values():
    jax.block_until_ready(call())
  for _ in range(repeats):
    for name, call in calls.items():
      begin = time.perf_counter()
      jax.block_until_ready(call())
      times[name].append(time.perf_counter() - begin)
  return {name: statistics.median(values) for name, values in times.items()}


def compile_timed(
  function: Callable[..., Any], *arguments: Any
) -> tuple[Callable[..., Any], float]:
  """The compiled function, and the seconds XLA took for it (a persistent cache must be off)."""
  lowered = jax.jit(function).lower(*arguments)
  begin = time.perf_counter()
  compiled = lowered.compile()
  return compiled, time.perf_counter() - begin


def case(name: str, params: int, batch: int, work: int, seconds: dict[str, float]) -> dict:
  """One entry of `cases`: `seconds` has the measured thing under `name`, baselines beside it.

  Args:
    work: positions that each of them processed.
  """
  rates = {of: work / second for of, second in seconds.items()}
  speed = rates.pop(name)
  return {
    "name": name,
    "params": params,
    "batch": batch,
    "tokens_per_s": speed,
    "baselines": rates,
    "ratios": {of: speed / rate for of, rate in rates.items()},
  }


def result(cases: list[dict], packages: Sequence[str] = ()) -> dict[str, Any]:
  """{"host", "versions", "cases"}; `packages` are versions to tell beside jaxzero's and jax's."""
  device = jax.devices()[0]
  return {
    "host": {
      "platform": platform.platform(),
      "cores": os.cpu_count(),
      "device": f"{device.platform} {device.device_kind}",
    },
    "versions": {name: metadata.version(name) for name in ("jaxzero", "jax", "jaxlib", *packages)},
    "cases": cases,
  }


def table(result: dict[str, Any]) -> str:
  """The result as text, one line a case."""
  names = list(result["cases"][0]["baselines"])
  head = f"{'':>8} {'params':>11} {'batch':>6} {'tokens/s':>10}"
  lines = [head + "".join(f" {name + '/s':>18} {'ratio':>7}" for name in names)]
  for case in result["cases"]:
    line = f"{case['name']:>8} {case['params']:>11,} {case['batch']:>6}"
    line += f" {case['tokens_per_s']:>10,.0f}"
    for name in names:
      line += f" {case['baselines'][name]:>18,.0f} {case['ratios'][name]:>7.2f}"
    lines.append(line)
  host = result["host"]
  lines.append(f"positions a second; {host['device']}, {host['cores']} cores, {host['platform']}")
  return "\n".join(lines)
