"""One world for all tests: the CPU as 8 devices, compiled code kept between runs, tiny shapes.

Set through jax.config, not the environment: the programs that tests start shall see a machine as
users have it.
"""

import asyncio
import pathlib
import subprocess
import sys
import types

import jax
import pytest
from fake_gcs import FakeGcs

from jaxzero.models.config import ModelConfig
from jaxzero.parallel.mesh import MeshConfig, make_mesh
from jaxzero.tasks.base import TaskConfig
from jaxzero.tasks.countdown import Countdown
from jaxzero.tokenizers import Tokenizer

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)


def pytest_configure(config):
  jax.config.update("jax_compilation_cache_dir", str(config.cache.mkdir("jax")))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


@pytest.fixture(scope="module", autouse=True)
def _no_hoard():
  """Frees a module's programs: thousands of them in one process end in a crash of the compiler."""
  yield
  jax.clear_caches()


@pytest.fixture(scope="module")
def quick_compiles():
  """Programs of this module are compiled in half the time, and run slower."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def task():
  return Countdown(TaskConfig(numbers=3, max_number=15))


@pytest.fixture(scope="session")
def tokenizer(task):
  problems = task.problems("train", 0, 5)
  solved = [task.worked_example(problem) for problem in problems]
  texts = [text for worked in solved for text in (*worked.steps, worked.answer)]
  return Tokenizer.train([problem.prompt for problem in problems] + texts)


@pytest.fixture(scope="session")
def mesh1():
  return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="session")
def mesh8():
  return make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))


@pytest.fixture(scope="session")
def tiny_model():
  return ModelConfig(
    num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=48
  )


@pytest.fixture(scope="session")
def smoke_command():
  """The command line of a smoke run in a folder, for another process."""
  config = pathlib.Path(__file__).parents[1] / "configs" / "smoke.py"
  return lambda folder: [
    sys.executable, "-m", "jaxzero.cli", "train", str(config), "--run", str(folder)
  ]  # fmt: skip


@pytest.fixture(scope="session")
def smoke_run(smoke_command, tmp_path_factory):
  """A finished run of configs/smoke.py, made once on one device; tests must not change it."""
  folder = tmp_path_factory.mktemp("runs") / "smoke"
  done = subprocess.run(smoke_command(folder), capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  return folder


@pytest.fixture(scope="session")
def _gcs(tmp_path_factory):
  """The fake store, with what gcsfs and TensorStore read once and for all."""
  store = FakeGcs()
  with pytest.MonkeyPatch.context() as patch:
    for name, value in {
      "STORAGE_EMULATOR_HOST": store.url,  # gcsfs and Google's client
      "TENSORSTORE_GCS_HTTP_URL": store.url,
      "GOOGLE_CLOUD_PROJECT": "test",
      "NO_GCE_CHECK": "true",  # no search for credentials in the network
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks for the bucket's layout over gRPC
    }.items():
      patch.setenv(name, value)
    yield store
  store.close()


@pytest.fixture
def gcs(_gcs, monkeypatch, tmp_path):
  """An empty fake bucket, `gs://bucket`; retries wait a thousandth of their time."""
  import gcsfs.retry

  quick = types.SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 1000))
  monkeypatch.setattr(gcsfs.retry, "asyncio", quick)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  _gcs.reset()
  yield _gcs
  _gcs.reset()
