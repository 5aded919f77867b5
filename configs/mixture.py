"""Countdown and arithmetic in one run, the quickstart's model: `jaxzero train configs/mixture.py`.

2 cores, under half an hour; twice the quickstart's worked examples, half of each task.
"""

import dataclasses

from jaxzero.recipes.experiment import Experiment
from jaxzero.tasks.base import TaskConfig

config = dataclasses.replace(
  Experiment(), task=TaskConfig(name="countdown+arithmetic", worked_examples=4000)
)
