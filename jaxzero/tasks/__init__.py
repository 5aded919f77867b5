"""Tasks: what is asked and how an answer is checked, one file per task."""

import dataclasses
from collections.abc import Callable

from jaxzero.errors import UserError
from jaxzero.tasks.arithmetic import Arithmetic
from jaxzero.tasks.base import Task, TaskConfig
from jaxzero.tasks.countdown import Countdown
from jaxzero.tasks.gym import Gym
from jaxzero.tasks.gym_problems import GYM_TASKS
from jaxzero.tasks.mixture import Mixture
from jaxzero.tasks.programs import Programs

TASKS: dict[str, Callable[[TaskConfig], Task]] = {
  "arithmetic": Arithmetic,
  "countdown": Countdown,
  "programs": Programs,
  **dict.fromkeys(GYM_TASKS, Gym),
}


def make(config: TaskConfig) -> Task:
  """The task that the config names, or the mixture of those that it joins by "+".

  Raises:
    UserError: an unknown name or an impossible setting.
  """
  names = config.name.split("+")
  for name in names:
    if name not in TASKS:
      raise UserError(f"unknown task {name!r}; the known ones are: {', '.join(sorted(TASKS))}")
  members = [TASKS[name](dataclasses.replace(config, name=name)) for name in names]
  return members[0] if len(members) == 1 else Mixture(members)
