"""One of several processes on one folder: saves, damages, resumes, and commits a round in parts.

Started by test_checkpoints.py; prints what it saw as one line of JSON.
"""

import dataclasses
import json
import pathlib
import sys
import warnings

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxzero import files
from jaxzero.checkpoints import Checkpoints
from jaxzero.parallel.hosts import barrier, gather_objects, initialize_hosts, is_primary
from jaxzero.selfplay.replay import ReplayStore, ShardInfo
from tests.selfplay.test_replay import episodes

initialize_hosts()
folder = pathlib.Path(sys.argv[1])
warnings.simplefilter("ignore")
hashed: list[str] = []
real = files.sha256_file
checkpoints = sys.modules["jaxzero.checkpoints"]
checkpoints.sha256_file = lambda path: hashed.append(str(path)) or real(path)

mesh = jax.make_mesh((jax.device_count(),), ("data",))
whole = np.arange(64, dtype=np.float32)
sharding = NamedSharding(mesh, PartitionSpec("data"))
params = {"a": jax.make_array_from_callback((64,), sharding, lambda at: whole[at])}
saved = Checkpoints(folder / "checkpoints")
for step in (1, 2):
  saved.save(step, params, params, {"step": step}, {"note": step})
mine = len(hashed)
if is_primary():
  path = next((folder / "checkpoints" / "2" / "params").glob("ocdbt.process_1/d/*"))
  path.write_bytes(path.read_bytes()[:-1])
barrier("damaged")
resumed = Checkpoints(folder / "checkpoints")
latest = resumed.latest_good()
loaded = resumed.restore(latest, params)["params"]["a"]
good = all(np.array_equal(part.data, whole[part.index]) for part in loaded.addressable_shards)

part, parts = jax.process_index(), jax.process_count()
if is_primary():
  store = ReplayStore(folder / "episodes")
barrier("opened")
if not is_primary():
  store = ReplayStore(folder / "episodes", primary=False)
share = episodes(0)[part * 2 : part * 2 + 2]
shards = gather_objects(dataclasses.asdict(store.stage(0, part, parts, share)))
if is_primary():
  store.commit(0, [ShardInfo(**shard) for shard in shards])
barrier("committed")
store.refresh()
ids = [episode.episode_id for episode in store.episodes(0)]
seen = {"latest": latest, "good": good, "hashed": mine, "steps": resumed.steps(), "ids": ids}
print(json.dumps(seen), flush=True)
