"""What verbs share: the parser, jax's start, JSON files."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import sys
import warnings
from typing import Any

import tyro

from jaxzero.errors import UserError
from jaxzero.progress import silence


def start_jax(cache: bool = True) -> None:
  """Joins the hosts where they are configured, and warns of an accelerator left idle."""
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  warnings.showwarning = lambda message, *_, **__: print(f"jaxzero: {message}", file=sys.stderr)
  # Orbax logs with a traceback what it raises, too.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  import jax

  from jaxzero.parallel.hosts import initialize_hosts, is_primary

  initialize_hosts()
  if not is_primary():
    silence()
  # The cache makes a restarted run start at once; a user's own setting wins.
  if cache and not jax.config.values["jax_compilation_cache_dir"]:
    folder = os.environ.get("XDG_CACHE_HOME") or str(pathlib.Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", f"{folder}/jaxzero/xla")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
  if jax.default_backend() == "cpu" and any(
    pathlib.Path(device).exists() for device in ("/dev/nvidia0", "/dev/accel0", "/dev/vfio/0")
  ):
    warnings.warn(
      "an accelerator is present, but jax runs on the CPU; install jaxzero[tpu], "
      "jaxzero[cuda12] or jaxzero[cuda13].",
      stacklevel=1,
    )


def parse(cls: Any, arguments: list[str], name: str) -> Any:
  """tyro's parser; a typo is an error with exit code 2."""
  parsed = tyro.cli(cls, args=arguments, prog=name)
  path = getattr(parsed, "json", None)  # not every verb has it
  if path is not None and ((path.exists() and not path.is_file()) or not path.parent.is_dir()):
    raise UserError(f"--json {path} is no regular file in an existing folder; give one.")
  return parsed


def write_json(path: pathlib.Path | None, value: Any) -> None:
  if path is not None:
    from jaxzero.files import write_atomic

    write_atomic(path, json.dumps(value, indent=1, sort_keys=True) + "\n")
