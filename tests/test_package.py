"""The package as others install it: its metadata, its command, its floors."""

from __future__ import annotations

import importlib
import importlib.metadata
import pathlib
import subprocess
import sys
import tomllib

from importlinter.cli import lint_imports

import jaxzero

ROOT = pathlib.Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version_everywhere():
  assert jaxzero.__version__ == PROJECT["version"] == importlib.metadata.version("jaxzero")


def test_the_command_exists():
  module, function = PROJECT["scripts"]["jaxzero"].split(":")
  assert callable(getattr(importlib.import_module(module), function))


def test_a_room_imports_only_from_floors_below_it(monkeypatch):
  monkeypatch.chdir(ROOT)
  assert lint_imports(cache_dir=None) == 0


def test_importing_the_package_or_asking_for_help_does_not_load_jax():
  ask = "import sys, jaxzero.cli; jaxzero.cli.main(['--help'])"
  code = f"{ask}; assert 'jax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_what_is_promised_lies_beside_the_code():
  assert "Apache License" in (ROOT / PROJECT["license-files"][0]).read_text()
  assert (ROOT / "jaxzero" / "py.typed").exists()


def test_constraints_hold_an_exact_version_of_every_dependency():
  lines = (ROOT / "constraints.txt").read_text().splitlines()
  pinned = dict(line.split("==") for line in lines if not line.startswith("#"))
  wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
  names = [requirement.split(">=")[0].split("[")[0] for requirement in wanted]
  assert set(names) <= set(pinned)
