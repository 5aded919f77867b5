"""The loss guard fires on what is no learning and nothing else; a batch's hash names its bytes."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxzero.errors import UserError
from jaxzero.learn.guard import LossGuard, batch_hash, check_spike_factor, combine, to_hex

SMALL = {"window": 5, "floor": 0.1}


def check(guard, loss, step=7, grad_norm=1.0):
  guard.check(step, loss, grad_norm, batch_hash=lambda: 0xABC, checkpoint=lambda: "pretrain/400")


def fed(losses, spike_factor=4.0):
  guard = LossGuard(spike_factor, **SMALL)
  for loss in losses:
    check(guard, loss)
  return guard


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_is_no_number_stops_at_once_even_without_a_test_of_spikes(name, bad):
  guard = LossGuard(0)
  with pytest.raises(UserError) as error:
    check(guard, **{"loss": 1.0, "grad_norm": 1.0, name: bad})
  for part in (f"step 7 is {bad}", "0000000000000abc", "pretrain/400", "learning rate"):
    assert part in str(error.value)


def test_a_spike_is_told_with_its_numbers_its_batch_and_the_way_out():
  guard = fed([1.0, 2.0, 3.0, 2.0, 1.5])
  check(guard, 8.0)  # four times the median is not over it
  with pytest.raises(UserError) as error:
    check(guard, 8.01)
  sentence = str(error.value)
  for part in ("step 7 is 8.01", "spike_factor=4", "median 2", "last 5", "0000000000000abc"):
    assert part in sentence
  assert "pretrain/400" in sentence and "raise --spike-factor" in sentence


def test_there_are_no_spikes_before_a_window_is_known_nor_with_factor_0():
  fed([1.0, 100.0, 1.0, 1.0, 1000.0])
  fed([1.0] * 10 + [1e30], spike_factor=0)


def test_losses_near_zero_may_leap_up_to_the_floor_times_the_factor():
  guard = fed([1e-4] * 5)
  check(guard, 0.39)
  with pytest.raises(UserError, match=r"median 0\.0001 .*taken as 0\.1"):
    check(guard, 0.41)


def test_a_slow_rise_never_fires_however_high_it_goes():
  fed([1.05**step for step in range(300)])


@given(st.lists(st.floats(0.0, 100.0, width=32), min_size=1, max_size=40), st.integers(0, 40))
def test_a_guard_from_a_checkpoint_stops_at_the_same_step_with_the_same_words(losses, saved_at):
  options = {"spike_factor": 1.5, "window": 4, "floor": 1.0}

  def run(saved_at):
    guard = LossGuard(**options)
    for step, loss in enumerate(losses):
      if step == saved_at:
        guard = LossGuard(**options, losses=json.loads(json.dumps(guard.to_list())))
      try:
        check(guard, loss, step)
      except UserError as error:
        return str(error), guard.to_list()
    return "", guard.to_list()

  assert run(saved_at) == run(None)


@pytest.mark.parametrize("wrong", [1.0, 0.5, -2.0, math.nan, math.inf])
def test_a_guard_that_would_stop_all_or_none_is_refused_with_its_number(wrong):
  with pytest.raises(UserError, match=f"spike_factor={wrong}"):
    check_spike_factor(wrong)
  check_spike_factor(0.0)


def batch(rows=24, seed=0):
  random = np.random.default_rng(seed)
  return {
    "tokens": random.integers(0, 9, (rows, 7), dtype=np.int32),
    "soft": random.normal(size=(rows, 5, 3)).astype(np.float32),
    "flag": random.integers(0, 2, rows).astype(bool),
  }


def part(arrays, rows):
  return {name: array[rows] for name, array in arrays.items()}


@given(st.permutations(range(24)), st.integers(1, 24))
def test_the_hash_does_not_depend_on_hosts_or_on_the_order_they_hold_rows_in(order, hosts):
  arrays = batch()
  parts = [np.array(order[host::hosts]) for host in range(hosts)]
  hashes = [batch_hash(part(arrays, rows), rows) for rows in parts]
  assert combine(hashes) == batch_hash(arrays, range(24))


@given(st.integers(0, 23), st.integers(0, 23))
def test_two_rows_that_trade_places_change_the_hash(a, b):
  arrays, rows = batch(), np.arange(24)
  rows[[a, b]] = rows[[b, a]]
  assert (batch_hash(part(arrays, rows), range(24)) == batch_hash(arrays, range(24))) == (a == b)


@given(st.sampled_from(["tokens", "soft", "flag"]), st.data())
def test_one_bit_changes_the_hash(name, data):
  arrays = batch()
  before = batch_hash(arrays, range(24))
  changed = arrays[name].view(np.uint8).reshape(-1)
  changed[data.draw(st.integers(0, changed.size - 1))] ^= 1 << data.draw(st.integers(0, 7))
  assert batch_hash(arrays, range(24)) != before


def test_the_same_rows_elsewhere_in_the_batch_and_fields_in_another_order_are_another_batch():
  arrays = batch()
  hashes = {
    batch_hash(arrays, range(24)),
    batch_hash(arrays, range(1, 25)),
    batch_hash(dict(reversed(arrays.items())), range(24)),
  }
  assert len(hashes) == 3 and all(0 <= value < 2**64 for value in hashes)


def test_a_view_that_is_not_contiguous_hashes_as_its_copy():
  arrays = batch()
  strided = {name: np.asfortranarray(array) for name, array in arrays.items()}
  assert batch_hash(strided, range(24)) == batch_hash(arrays, range(24))


def test_a_hash_is_written_in_16_digits():
  assert to_hex(1) == "0000000000000001" and to_hex(2**64 - 1) == "f" * 16
