"""A whole run in a bucket that fails now and then, killed and continued, ends as one on a disk."""

import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from benchmarks.faults import contents, differences
from jaxzero.errors import UserError
from jaxzero.files import as_path
from jaxzero.recipes import lock as lock_lib
from jaxzero.recipes.lock import lock
from jaxzero.recipes.verify import verify
from tests.recipes.test_many_hosts import QUICK, train

ROOT = pathlib.Path(__file__).parents[2]
# Compiled programs are shared with other tests; the fixture moves only the cache of objects.
COMPILED = {"JAX_COMPILATION_CACHE_DIR": str(pathlib.Path.home() / ".cache" / "jaxzero" / "xla")}


def start(folder):
  return subprocess.Popen(
    [sys.executable, "-m", "tests.recipes.two_stages", *train(folder)],
    cwd=ROOT,
    env={**os.environ, **COMPILED, **QUICK, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(process):
  _, said = process.communicate(timeout=300)
  assert process.returncode == 0, said
  return said


def test_a_run_in_a_bucket_killed_and_continued_ends_as_one_on_a_disk(gcs, tmp_path):
  finish(start(tmp_path / "disk"))
  number, faults = itertools.count(1), itertools.cycle(("503", "cut", "lost"))

  def every_sixtieth(method, url):
    return next(faults) if method == "POST" and next(number) % 60 == 0 else None

  gcs.faults = every_sixtieth
  process = start("gs://bucket/run")
  while not any("checkpoints/pretrain/digest-4" in name for name in list(gcs.objects)):
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  process.wait()
  gcs.objects.pop("run/.lock")  # as if its lease had run out
  finish(start("gs://bucket/run"))
  assert all(gcs.requests["POST", fault] for fault in ("503", "cut", "lost"))
  gcs.reset_faults()
  assert verify("gs://bucket/run").damage == []
  for name, data in list(gcs.objects.items()):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  assert differences(contents(tmp_path / "disk"), contents(tmp_path / "run")) == []


def test_a_lease_is_held_by_one_and_taken_over_from_the_dead(gcs, monkeypatch, capsys):
  monkeypatch.setattr(lock_lib, "LEASE_S", 1.0)
  folder = as_path("gs://bucket/leased")
  held = lock(folder)
  with pytest.raises(UserError, match="another process is working on gs://bucket/leased"):
    lock(folder)
  held.release()
  assert "leased/.lock" not in gcs.objects
  gcs.put("leased/.lock", b"a host that died:1:abc 7")
  begin = time.monotonic()
  late = lock(folder)
  assert time.monotonic() - begin >= 1.0, "it is given time for a sign of life"
  assert "is held" in capsys.readouterr().err
  late.check()
  gcs.put("leased/.lock", b"another that took over:1:def 1")
  time.sleep(0.6)
  with pytest.raises(UserError, match="another process took over gs://bucket/leased"):
    late.check()
  late.release()
  assert gcs.objects["leased/.lock"].startswith(b"another"), "what is not ours stays"
