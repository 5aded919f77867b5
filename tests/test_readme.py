"""What the README shows works as it stands, on other devices than the run was made on."""

import pathlib
import re
import subprocess
import sys

import pytest

README = (pathlib.Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("uses_jaxzero", [True, False])
def test_the_python_of_the_readme_runs_on_eight_devices(smoke_run, uses_jaxzero):
  (code,) = [block for block in BLOCKS if ("import jaxzero" in block) == uses_jaxzero]
  assert "runs/quickstart" in code
  devices = "import jax; jax.config.update('jax_num_cpu_devices', 8)\n"
  check = "" if uses_jaxzero else "\nimport sys; assert 'jaxzero' not in sys.modules"
  done = subprocess.run(
    [sys.executable, "-c", devices + code.replace("runs/quickstart", str(smoke_run)) + check],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert uses_jaxzero or "'unembed': (64, 281)" in done.stdout


def test_the_readme_opens_with_the_two_commands():
  block = README.split("```")[1].strip().splitlines()
  assert block == [
    "pip install -e . && jaxzero quickstart",
    "pip install -e '.[test]' && pytest",
  ]
