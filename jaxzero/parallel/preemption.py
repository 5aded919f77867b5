"""Stopping together: a signal to any one host becomes a point at which all hosts save and leave."""

from __future__ import annotations

import os
import signal

import jax
from jax.experimental import multihost_utils

_notice = False  # this process was told to stop
_agreed = False  # all hosts stop
_points = 0


def listen() -> None:
  """From now on SIGTERM, SIGHUP and Ctrl-C ask for a stop; a second one stops at once.

  Among several processes jax has its own handler of SIGTERM, which tells the others and takes no
  second one; the other signals are passed on to it. Call it after the hosts have joined.
  """
  handled = [signal.SIGINT, signal.SIGHUP]
  if not jax.distributed.is_initialized():
    handled.append(signal.SIGTERM)
  for number in handled:
    signal.signal(number, _on_signal)


def reached() -> bool:
  """Marks a point where this program could stop, and says whether all hosts stop there.

  Every host passes the same points in the same order; where one of them has a notice, all are told
  at the same later point, and at every one after it.
  """
  global _points, _agreed
  _points += 1
  if jax.distributed.is_initialized():
    # Asked at every point, also after the agreement: the hosts count them together.
    _agreed = multihost_utils.reached_preemption_sync_point(_points) or _agreed
  else:
    _agreed = _notice
  return _agreed


def _on_signal(number: int, _: object) -> None:
  global _notice
  if _notice:
    raise KeyboardInterrupt
  _notice = True
  # Not by print, which may be in the middle of a line.
  os.write(2, b"jaxzero: stopping at the next step; once more stops at once.\n")
  if jax.distributed.is_initialized():
    os.kill(os.getpid(), signal.SIGTERM)
