"""Arithmetic with worked steps, the quickstart's model: `jaxzero train configs/arithmetic.py`.

2 cores, under half an hour. A key decides, so a search at test time verifies nothing.
"""

import dataclasses

from jaxzero.recipes.experiment import Experiment
from jaxzero.tasks.base import TaskConfig

config = dataclasses.replace(
  Experiment(),
  task=TaskConfig(name="arithmetic", numbers=3, max_number=99, max_target=999),
)
