"""Goodput: every second of a run is counted once, whatever nests, compiles or kills it."""

import json
import random
import warnings

import jax
import jax.numpy as jnp
import pytest

from jaxzero.recipes.goodput import PHASES, Goodput


class Clock:
  """Time that passes only when told to; as seconds that pass and since the epoch."""

  def __init__(self):
    self.now = 1000.0

  def __call__(self):
    return self.now

  def work(self, seconds):
    self.now += seconds


@pytest.fixture
def clock():
  return Clock()


def session(folder, clock, **kwargs):
  return Goodput(folder, clock=clock, wall=clock, **kwargs)


def spent(goodput):
  return {name: s for name, s in goodput.to_dict()["seconds"].items() if s}


def test_a_nested_phase_pauses_the_outer_one_and_the_rest_is_other(tmp_path, clock):
  with session(tmp_path, clock) as goodput:
    clock.work(1)
    with goodput.phase("learn"):
      clock.work(10)
      with goodput.phase("stall"):
        clock.work(100)
      clock.work(20)
    clock.work(2)
  assert spent(goodput) == {"other": 3, "learn": 30, "stall": 100}


def test_phases_sum_to_the_time_that_passed_whatever_happens(tmp_path, clock):
  draw = random.Random(0)

  def anything(goodput, depth):
    for _ in range(draw.randrange(4)):
      clock.work(draw.randrange(100) / 64)  # sums of such are exact
      if depth and draw.random() < 0.7:
        with goodput.phase(draw.choice(PHASES[:-1])):
          anything(goodput, depth - 1)
      if draw.random() < 0.3:
        raise InterruptedError
      draw.choice([goodput.beat, goodput.commit, goodput.summary])()

  begin = clock()
  for _ in range(50):
    try:
      with session(tmp_path, clock) as goodput:
        anything(goodput, depth=4)
    except InterruptedError:
      pass
    assert sum(goodput.to_dict()["seconds"].values()) == clock() - begin


def test_what_a_kill_threw_away_is_lost_and_the_pause_is_down(tmp_path, clock):
  killed = session(tmp_path, clock, heartbeat_s=5)
  with killed.phase("self_play"):
    clock.work(60)
  killed.commit()
  with killed.phase("learn"):
    clock.work(30)
    killed.beat()
    clock.work(4)
    killed.beat()  # too soon to be written
  del killed
  clock.work(996)
  with session(tmp_path, clock) as goodput, goodput.phase("learn"):
    clock.work(10)
  figures = goodput.to_dict()
  assert spent(goodput) == {"self_play": 60, "lost": 30, "learn": 10}
  assert figures["down_s"] == 1000, "from the last written sign of life"
  assert figures["goodput"] == 70 / 100
  assert figures["goodput_with_down"] == 70 / 1100
  assert figures["sessions"] == 2


def test_work_lost_twice_is_counted_twice_and_without_a_commit_from_the_start(tmp_path, clock):
  for _ in range(2):
    killed = session(tmp_path, clock)
    with killed.phase("learn"):
      clock.work(20)
      killed.beat()
  assert spent(session(tmp_path, clock)) == {"lost": 40}


def test_a_failure_loses_what_was_not_committed_but_a_good_end_loses_nothing(tmp_path, clock):
  stopped = pytest.raises(KeyboardInterrupt)
  with stopped, session(tmp_path, clock) as goodput, goodput.phase("learn"):
    clock.work(10)
    raise KeyboardInterrupt
  assert spent(goodput) == {"lost": 10}, "as the summary at this exit tells"
  clock.work(5)
  with session(tmp_path, clock) as goodput, goodput.phase("learn"):
    clock.work(10)
  clock.work(3600)  # nobody was waiting: the run was done
  again = session(tmp_path, clock)
  assert spent(again) == {"lost": 10, "learn": 10}
  assert again.to_dict()["down_s"] == 5


def test_a_heartbeat_is_written_no_more_often_than_asked(tmp_path, clock):
  file = tmp_path / "goodput.json"
  goodput = session(tmp_path, clock, heartbeat_s=10)
  alive = []
  for _ in range(35):
    goodput.beat()
    alive.append(json.loads(file.read_text())["alive"])
    clock.work(1)
  assert sorted(set(alive)) == [1000, 1010, 1020, 1030]


def compiling(name):
  """Jits a new program; returns the seconds of it that jax reports, nested ones once."""
  spans = []

  def listen(event, start, end, **_):
    if event.startswith("/jax/core/compile/"):
      spans.append((start, end))

  jax.monitoring.register_event_time_span_listener(listen)

  def step(x):
    with jax.ensure_compile_time_eval():  # compiles while it is being traced
      x = x + jnp.linspace(0.0, 1.0, len(name))[0] ** 3
    for _ in range(40):
      x = jnp.sin(x) @ x
    return x

  step.__name__ = name
  try:
    jax.block_until_ready(jax.jit(step)(jnp.ones((7, 7))))
  finally:
    jax.monitoring.unregister_event_time_span_listener(listen)
  outer = [s for s in spans if not any(o != s and o[0] <= s[0] and s[1] <= o[1] for o in spans)]
  assert len(outer) < len(spans), "nothing was nested"
  return sum(end - start for start, end in outer)


def test_compilation_is_taken_out_of_the_phase_it_happens_in_and_counted_once(tmp_path):
  with Goodput(tmp_path) as goodput:
    with goodput.phase("learn"):
      expected = compiling("learn_step")
    figures = spent(goodput)
    before = figures["compile"]
    assert before == pytest.approx(expected, rel=0.02, abs=0.005)
    assert figures["learn"] >= 0
    with goodput.phase("learn"):
      jax.block_until_ready(jnp.sin(jnp.ones((7, 7))))  # small, perhaps compiled anew
    assert spent(goodput)["compile"] - before < expected
  after = spent(goodput)["compile"]
  compiling("after_the_session")
  assert spent(goodput)["compile"] == after, "a closed session listens no more"


def test_programs_that_were_compiled_before_cost_nothing(tmp_path):
  step = jax.jit(lambda x: x * 3)
  step(jnp.ones(3))
  with Goodput(tmp_path) as goodput:
    with goodput.phase("learn"):
      jax.block_until_ready(step(jnp.ones(3)))
    assert "compile" not in spent(goodput)


def test_a_damaged_file_starts_the_count_anew_with_a_warning(tmp_path, clock):
  file = tmp_path / "goodput.json"
  with session(tmp_path, clock) as goodput, goodput.phase("learn"):
    clock.work(10)
  whole = file.read_bytes()
  torn = [whole[:size] for size in range(0, len(whole) - 2, 7)]
  for damaged in [*torn, b"[]", b"null", b"\xff\xfe", b'{"committed": 3}']:
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match=r"goodput\.json is damaged"):
      goodput = session(tmp_path, clock)
    assert spent(goodput) == {} and goodput.sessions == 1
  file.write_bytes(whole)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert spent(session(tmp_path, clock)) == {"learn": 10}


def test_the_summary_tells_the_phases_that_took_time_with_their_shares(tmp_path, clock):
  with pytest.raises(KeyboardInterrupt), session(tmp_path, clock) as goodput:
    with goodput.phase("self_play"):
      clock.work(3 * 3600)
    goodput.commit()
    raise KeyboardInterrupt
  clock.work(1800)
  with session(tmp_path, clock) as goodput, goodput.phase("checkpoint"):
    clock.work(3600)
  head, *lines = goodput.summary().splitlines()
  assert head == ("goodput 75.0% of 4:00:00 in 2 sessions (66.7% with 0:30:00 down between them)")
  assert [line.split() for line in lines] == [
    ["self_play", "3:00:00", "75.0%"],
    ["checkpoint", "1:00:00", "25.0%"],
  ]
