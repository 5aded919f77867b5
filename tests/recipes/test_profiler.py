"""The profiler's window: the trace holds the steps that were asked for, whole, and no others."""

import jax
import jax.numpy as jnp
import pytest
from etils import epath

from jaxzero.errors import UserError
from jaxzero.recipes.profiler import Profiler, Window


@jax.jit
def train_step(x):
  for _ in range(10):  # longer than it takes to ask for the next step
    x = jnp.sin(x @ x)
  return x


def train(profiler, numbers):
  x = jnp.ones((300, 300))
  for number in numbers:
    with profiler.step(number, x):
      x = train_step(x)


def traced(folder):
  """Of every trace: the numbers of its train steps, and how often their program ran."""
  found = []
  for path in sorted(folder.rglob("*.xplane.pb")):
    planes = jax.profiler.ProfileData.from_file(str(path)).planes
    events = [event for plane in planes for line in plane.lines for event in line.events]
    stats = [(event.name, dict(event.stats)) for event in events]
    steps = sorted(stat["step_num"] for name, stat in stats if name == "train")
    runs = {stat["run_id"] for _, stat in stats if stat.get("hlo_module") == "jit_train_step"}
    found.append((steps, len(runs)))
  return found


@pytest.mark.parametrize(
  "text", ["", "10", "13:10", "10:10", "-1:3", "1:2:3", "a:b", " 1:2", "²:3"]
)
def test_a_window_without_steps_is_refused_with_its_text(text):
  with pytest.raises(UserError, match=r"is no window of train steps") as error:
    Window.parse(text)
  assert repr(text) in str(error.value)


def test_a_window_holds_its_start_and_not_its_stop():
  window = Window.parse("10:13")
  assert [step for step in range(20) if step in window] == [10, 11, 12]


def test_the_trace_holds_the_steps_of_the_window_and_their_work(tmp_path):
  profiler = Profiler(tmp_path, Window.parse("3:5"))
  train(profiler, range(8))
  ((steps, runs),) = traced(tmp_path / "profile" / "process-0")
  assert steps == [3, 4]
  assert runs == 2, "their work was waited for, and that of the step before"
  profiler.close()


def test_a_resumed_training_traces_what_is_left_and_close_ends_an_open_window(tmp_path):
  profiler = Profiler(tmp_path, Window.parse("3:100"))
  train(profiler, range(6, 9))
  assert traced(tmp_path) == []
  profiler.close()
  ((steps, _),) = traced(tmp_path)
  assert steps == [6, 7, 8]
  profiler.close()  # nothing is open: jax would complain


def test_without_a_window_or_outside_of_it_nothing_is_written(tmp_path):
  for window in (None, Window.parse("100:200")):
    profiler = Profiler(tmp_path, window)
    train(profiler, range(3))
    profiler.close()
  assert list(tmp_path.iterdir()) == []


def test_a_bucket_is_refused_before_training_but_only_with_a_window():
  bucket = epath.Path("gs://bucket/run")
  Profiler(bucket, None)
  with pytest.raises(UserError, match="gs://bucket/run"):
    Profiler(bucket, Window.parse("1:2"))


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path):
  (tmp_path / "profile").write_text("a file is in the way")
  with pytest.raises(UserError, match="a part of the path is a file"):
    train(Profiler(tmp_path, Window.parse("0:1")), range(1))
