"""Programs of two pieces from three examples, the quickstart's model: `jaxzero train
configs/programs.py`. 2 cores, under an hour."""

import dataclasses

from jaxzero.recipes.experiment import Experiment
from jaxzero.search.config import TreeConfig
from jaxzero.search.play import PlayConfig
from jaxzero.tasks.base import TaskConfig

_base = Experiment()

config = dataclasses.replace(
  _base,
  task=TaskConfig(name="programs", numbers=2, max_number=9, max_target=99),
  max_prompt=68,
  self_play=dataclasses.replace(
    _base.self_play, play=PlayConfig(tree=TreeConfig(num_simulations=144), max_tokens=48)
  ),
)
