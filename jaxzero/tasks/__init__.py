"""Tasks: what is asked and how an answer is checked, one file per task."""

from collections.abc import Callable

from jaxzero.errors import UserError
from jaxzero.tasks.arithmetic import Arithmetic
from jaxzero.tasks.base import Task, TaskConfig
from jaxzero.tasks.countdown import Countdown

TASKS: dict[str, Callable[[TaskConfig], Task]] = {
  "arithmetic": Arithmetic,
  "countdown": Countdown,
}


def make(config: TaskConfig) -> Task:
  """The task that the config names; UserError on an unknown name or an impossible setting."""
  if config.name not in TASKS:
    raise UserError(f"unknown task {config.name!r}; the known ones are: {', '.join(sorted(TASKS))}")
  return TASKS[config.name](config)
