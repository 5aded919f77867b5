import contextlib
import dataclasses

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trees import tree_arrays

from jaxzero.errors import UserError
from jaxzero.selfplay.episode import SCHEMA_VERSION, Episode, from_bytes, to_bytes, validate

VOCAB = 50


def episode(seed=0, P=5, T=7, A=4, H=3):
  random = np.random.default_rng(seed)
  candidates = np.array([random.permutation(VOCAB)[:A] for _ in range(H)]).reshape(H, A)
  tokens, harvested = (random.integers(VOCAB, size=n).astype(np.int32) for n in (T, H))
  return Episode(
    episode_id=f"{seed}-0-1",
    problem_id="2 5 6 = 32",
    prompt="2 5 6 = 32",
    prompt_tokens=random.integers(VOCAB, size=P).astype(np.int32),
    tokens=tokens,
    harvested=harvested,
    candidates=candidates.astype(np.int32),
    weights=random.dirichlet(np.ones(A + 1), H).astype(np.float32),
    values=random.random(H).astype(np.float32),
    visit_counts=random.integers(9, size=(H, A)).astype(np.int32),
    right=False,
    truncated=bool(random.integers(2)),
    forward_tokens=int(random.integers(99)),
    model_step=seed,
    search={"num_simulations": 16, "c_scale": 0.1, "rounds": (4, 2)},
    **tree_arrays(tokens, harvested, right=[harvested]),
  )


def won(**sizes):
  """A game that was won as it was played."""
  played = episode(**sizes)
  return dataclasses.replace(played, right=True, tokens=played.harvested.copy())


def same(a, b):
  for field in dataclasses.fields(Episode):
    x, y = getattr(a, field.name), getattr(b, field.name)
    if isinstance(x, np.ndarray):
      assert x.dtype == y.dtype and x.shape == y.shape
      np.testing.assert_array_equal(x, y)
    elif field.name != "search":
      assert x == y and type(x) is type(y)


json_like = st.recursive(
  st.none()
  | st.booleans()
  | st.integers(-(2**63), 2**64 - 1)
  | st.floats(allow_nan=False, allow_infinity=False)
  | st.text(max_size=5),
  lambda inner: (
    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
  ),
  max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
  seed=st.integers(0, 99),
  P=st.integers(0, 4),
  T=st.integers(0, 5),
  A=st.integers(1, 4),
  H=st.integers(0, 3),
  search=st.dictionaries(st.text(max_size=5), json_like, max_size=3),
  make=st.sampled_from([episode, won]),
)
def test_round_trip_of_every_shape(seed, P, T, A, H, search, make):
  played = dataclasses.replace(make(seed=seed, P=P, T=T, A=A, H=H), search=search)
  validate(played, VOCAB)
  data = to_bytes(played)
  same(from_bytes(data), played)
  assert to_bytes(from_bytes(data)) == data
  validate(from_bytes(data), VOCAB)


def test_bytes_do_not_depend_on_key_order_or_memory_layout():
  a = dataclasses.replace(episode(), search={"x": 1, "y": {"b": 2, "a": [1.5]}})
  b = dataclasses.replace(
    a,
    search={"y": {"a": [1.5], "b": 2}, "x": 1},
    tree_prior=np.repeat(a.tree_prior, 2)[::2],
    weights=np.asfortranarray(a.weights),
    tokens=np.repeat(a.tokens, 2)[::2],
  )
  assert to_bytes(a) == to_bytes(b)
  assert to_bytes(a) != to_bytes(dataclasses.replace(a, model_step=1))


def test_damaged_bytes_are_an_error_or_an_episode_never_a_crash():
  data = to_bytes(episode())
  random = np.random.default_rng(0)
  for cut in range(0, len(data), 7):
    with pytest.raises(UserError):
      from_bytes(data[:cut])
  for _ in range(500):
    broken = bytearray(data)
    broken[random.integers(len(data))] ^= 1 << random.integers(8)
    with contextlib.suppress(UserError):
      assert isinstance(from_bytes(bytes(broken)), Episode)


def record(**changes):
  return msgpack.packb({**msgpack.unpackb(to_bytes(episode())), **changes})


@pytest.mark.parametrize(
  ("data", "message"),
  [
    (b"", "not an episode"),
    (b"\xc1", "not an episode"),
    (msgpack.packb([1]), "no schema_version"),
    (msgpack.packb({"schema_version": SCHEMA_VERSION}), "missing or unknown fields"),
    (record(schema_version=2), "schema_version 2, this jaxzero reads 3"),
    (record(reward=1.0), "unknown fields .'reward'."),
    (record(right=1), "right is a int"),
    (record(search=[1]), "search is a list"),
    (record(tokens=None), "tokens is not an array"),
    (record(tokens={"dtype": "int64", "shape": [1], "data": bytes(8)}), "int64"),
    (record(tokens={"dtype": "int32", "shape": [3], "data": bytes(8)}), "tokens is not an array"),
    (record(tokens={"dtype": "int32", "shape": [-1], "data": bytes(8)}), "tokens is not an array"),
    (record(tokens={"dtype": "int32", "shape": [2, 1], "data": bytes(8)}), r"not int32 \[T\]"),
  ],
)
def test_what_is_not_an_episode_is_refused_with_the_reason(data, message):
  with pytest.raises(UserError, match=message):
    from_bytes(data)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"tokens": np.zeros(7, np.int64)}, r"tokens is int64 \[7\], not int32 \[T\]"),
    ({"tokens": [1, 2]}, "tokens is list"),
    ({"right": np.bool_(True)}, "right is a bool"),
    ({"search": {"q": np.float32(1)}}, "search.q is a float32"),
    ({"search": {"c": float("nan")}}, "search.c is nan"),
    ({"search": {1: 2}}, "search is a dict"),
    ({"search": {"big": 2**64}}, "cannot be stored"),
  ],
)
def test_what_cannot_be_stored_is_refused_with_the_reason(change, message):
  with pytest.raises(UserError, match=message):
    to_bytes(dataclasses.replace(episode(), **change))


def changed(name, index, value):
  array = getattr(episode(), name).copy()
  array[index] = value
  return {name: array}


def twins():
  """The first token of both completions is the same, in two nodes."""
  token = episode().tree_token.copy()
  token[8] = token[1]
  return {"tree_token": token}


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"values": np.zeros(2, np.float32)}, r"values is \[2\], but H=3"),
    ({"visit_counts": np.zeros((3, 3), np.int32)}, "but A=4"),
    ({"weights": np.zeros((3, 4), np.float32)}, "weights have 4 columns for 4 candidates"),
    (changed("tokens", 0, VOCAB), "tokens has ids from .* to 50, outside the vocabulary of 50"),
    (changed("prompt_tokens", 0, -1), "prompt_tokens has ids from -1"),
    (changed("harvested", 2, 99), "harvested"),
    (changed("candidates", (1, 0), -1), "candidates has ids from -1"),
    (changed("candidates", 1, [3, 4, 5, 3]), "move 1 of 3: candidates repeat"),
    (changed("weights", 2, [-0.5, 0.5, 0.5, 0.5, 0]), "move 2 of 3: weights are negative"),
    (changed("weights", 1, [0.5, 0.5, 0.01, 0, 0]), "weights do not sum to 1"),
    (changed("weights", (1, 0), np.nan), "weights are not finite"),
    (changed("weights", (1, 0), np.inf), "weights are not finite"),
    (changed("visit_counts", (1, 0), -1), "visit_counts are negative"),
    (changed("values", 1, np.nan), "values is outside"),
    (changed("values", 1, 1.1), "values is outside"),
    ({"right": True}, "its tokens are not the harvested ones"),
    (tree_arrays(np.arange(3, dtype=np.int32)), "tree does not hold the path of its tokens"),
    ({"tree_verdict": np.full(11, -1, np.int8)}, "the harvested completion does not end right"),
    ({"tree_visits": np.zeros(3, np.int32)}, r"tree_visits is .3., but M=11"),
    (changed("tree_parent", 0, 0), "its tree of 11 nodes does not begin with a root"),
    (changed("tree_parent", 4, 4), "node 4 of 11: its parent does not come before it"),
    (changed("tree_parent", 4, -1), "node 4 of 11: its parent does not come before it"),
    (changed("tree_token", 3, VOCAB), "tree_token has ids"),
    (changed("tree_verdict", 2, 0), "node 3 of 11: it hangs below an end"),
    (changed("tree_verdict", 7, 2), "node 7 of 11: its verdict"),
    (changed("tree_prior", 2, np.nan), "node 2 of 11: its prior"),
    (changed("tree_prior", 2, -np.inf), "node 2 of 11: its prior"),
    (changed("tree_value", 2, np.nan), "node 2 of 11: its value"),
    (changed("tree_visits", 2, -1), "node 2 of 11: its visits"),
    (twins(), "node 8 of 11: its parent has another child of the same token"),
  ],
)
def test_an_impossible_episode_is_not_valid(change, message):
  validate(episode(), VOCAB)
  with pytest.raises(UserError, match=message):
    validate(dataclasses.replace(episode(), **change), VOCAB)
