"""Arithmetic with worked steps, the quickstart's model: `jaxzero train configs/arithmetic.py`.

2 cores, under half an hour. A key decides, so a search at test time verifies nothing. A model of
0.16 M parameters (configs/micro.py) gets about 34 % after pre-training, 82 to 90 % after self-play.
"""

import dataclasses

from jaxzero.recipes.experiment import Experiment
from jaxzero.tasks.base import TaskConfig

_base = Experiment()

config = dataclasses.replace(
  _base,
  task=TaskConfig(name="arithmetic", numbers=3, max_number=40, max_target=999),
  self_play=dataclasses.replace(
    _base.self_play, play=dataclasses.replace(_base.self_play.play, max_tokens=36)
  ),
)
