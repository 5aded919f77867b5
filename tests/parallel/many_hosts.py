"""Worker of test_hosts: what several processes see of each other, as JSON lines on stdout."""

from __future__ import annotations

import json
import os
import sys
import time

import jax
import numpy as np

from jaxzero.errors import UserError
from jaxzero.parallel import hosts, preemption
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.parallel.rows import HostRows

MESHES = {
  "data": MeshConfig(),
  "fsdp": MeshConfig(fsdp=2),
  "inside": MeshConfig(tensor=2),
  "across": MeshConfig(tensor=8),
  "all": MeshConfig(fsdp=2, tensor=2),
}


def tell(**values: object) -> None:
  print(json.dumps({"process": jax.process_index(), **values}), flush=True)


def rows() -> None:
  """Puts, takes, shares, gathers and adds up over every mesh."""
  for name, config in MESHES.items():
    own = HostRows(make_mesh(config))
    whole = np.arange(16 * 3).reshape(16, 3)
    mine = whole[own.of(16)]
    placed = own.put({"x": mine})
    doubled = jax.jit(lambda x: x * 2)(placed["x"])
    share = own.share(7)
    like = jax.ShapeDtypeStruct((3,), whole.dtype)
    gathered = {
      first: own.gather({n: whole[n] for n in share}, like, first, 7) for first in (0, 2, 7)
    }
    tell(
      mesh=name,
      part=own.part,
      parts=own.parts,
      leader=own.is_leader,
      rows=own.of(16).tolist(),
      shape=list(placed["x"].shape),
      round_trip=bool((own.take(placed)["x"] == mine).all()),
      doubled=bool((own.take(doubled) == 2 * mine).all()),
      share=list(share),
      gathered={str(k): np.asarray(v).tolist() for k, v in gathered.items()},
      total=own.total({"big": len(share) + (1 << 60)}),
    )


def stop() -> None:
  """One process gets SIGTERM; each tells at which point it stopped."""
  preemption.listen()
  for point in range(200):
    if preemption.reached():
      tell(stopped=point, again=preemption.reached())
      return
    tell(point=point)
    time.sleep(0.1)


def refuse() -> None:
  """What one process refuses, all refuse."""

  def third_is_full() -> int:
    if jax.process_index() == 2:
      raise UserError("the disk of the third is full; make room.")
    return jax.process_index() * 10

  try:
    hosts.jointly(third_is_full)
  except UserError as error:
    tell(full=str(error))
  tell(all=hosts.jointly(lambda: jax.process_index()), first=hosts.by_primary(time.time))


def late() -> None:
  """The last process never comes to the barrier."""
  if jax.process_index() == jax.process_count() - 1:
    time.sleep(4)
    os._exit(0)
  try:
    hosts.barrier("all here", timeout_s=2)
  except UserError as error:
    tell(error=str(error))
  time.sleep(1 if jax.process_index() else 2)
  os._exit(0)


def join() -> None:
  """Joining fails: the last process has the id of the one before it, or never comes."""
  hosts.JOIN_TIMEOUT_S = 4
  process = int(os.environ[hosts.PROCESS_ID])
  if sys.argv[2] == "twice" and process == 2:
    os.environ[hosts.PROCESS_ID] = "1"
  if sys.argv[2] == "missing" and process == 2:
    time.sleep(6)
    os._exit(0)
  if sys.argv[2] == "too many" and process < 2:
    os.environ[hosts.NUM_PROCESSES] = "2"
  hosts.initialize_hosts()
  time.sleep(2)
  os._exit(0)


if __name__ == "__main__":
  if sys.argv[1] == "join":
    join()
  hosts.initialize_hosts()
  globals()[sys.argv[1]]()
