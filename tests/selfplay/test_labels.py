"""Step labels against exact chances of success, and bisection against looking everywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxzero.errors import UserError
from jaxzero.models.transformer import bind, init_params
from jaxzero.search.engine import Engine
from jaxzero.selfplay.labels import StepLabels, Tried, _bisected, first_errors, label, step_ends
from jaxzero.tasks.base import Problem, Verdict
from jaxzero.tasks.transcript import encode_prompt

pytestmark = pytest.mark.usefixtures("quick_compiles")
MAX_TOKENS, ROLLOUTS = 4, 256


class Parity:
  """Reads tokens; right where the ids of the first two add up to an even number, lost where to an
  odd one."""

  state_size = 2  # tokens read, their sum

  def start(self, problem_array):
    return jnp.zeros((*problem_array.shape[:-1], 2), jnp.int32)

  def read(self, state, token):
    count, total = state[..., 0], state[..., 1]
    return jnp.stack([count + 1, total + jnp.where(count < 2, token, 0)], axis=-1)

  def lost(self, state):
    return (state[..., 0] >= 2) & (state[..., 1] % 2 == 1)

  def right(self, state):
    return (state[..., 0] >= 2) & (state[..., 1] % 2 == 0)


@dataclasses.dataclass(frozen=True)
class Even:
  """A task without meaning whose chances are easily worked out."""

  name: str = "even"
  self_checkable: bool = True

  def problem_array(self, problem):
    return np.zeros(1, np.int32)

  def device_verifier(self, tokenizer):
    return Parity()

  def verify(self, problem, answer, steps=None):
    return Verdict(False, "never asked")


@pytest.fixture(scope="module")
def engine(tiny_model, tokenizer, mesh1):
  return Engine(tiny_model, tokenizer, Even(), mesh1, max_prompt=12, max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def params(tiny_model, tokenizer):
  return jax.jit(lambda key: init_params(tiny_model, tokenizer.vocab_size, key))(jax.random.key(0))


PROBLEMS = [Problem(id=text, prompt=text) for text in ("1 2 = 3", "2 2 = 4", "7", "1 5 = 6")]


def exact_success(engine, params, problem, read):
  """P(right) of the policy from a prefix of one token or none, by enumeration."""
  tokenizer, V = engine.tokenizer, engine.tokenizer.vocab_size

  @jax.jit
  def next_token(texts):
    B, T = texts.shape
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    mask = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), bool)), (B, T, T))
    return jax.nn.softmax(bind(engine.model, V, params)(texts, positions, mask).logits[:, -1])

  prompt = encode_prompt(tokenizer, problem)
  first = np.asarray(next_token(np.asarray([prompt], np.int32)))[0]
  both = np.asarray(next_token(np.asarray([[*prompt, a] for a in range(V)], np.int32)))
  even = (np.arange(V)[:, None] + np.arange(V)) % 2 == 0
  second = (both * even).sum(axis=1)  # P(right | first token)
  second[tokenizer.end_id] = 0.0  # a game that ends there has read one token alone
  return second[read[0]] if read else float(first @ second)


@pytest.fixture(scope="module")
def tried(engine, params, tokenizer):
  tried = Tried(engine, params, ROLLOUTS, seed=3, batch_size=8)
  tried.measure([(problem, ()) for problem in PROBLEMS])
  tried.measure([(problem, (tokenizer.step_id,)) for problem in PROBLEMS[:3]])
  return tried


def test_labels_are_within_binomial_error_of_the_exact_chances(tried, engine, params, tokenizer):
  for problem, read in [
    *((p, ()) for p in PROBLEMS),
    *((p, (tokenizer.step_id,)) for p in PROBLEMS[:3]),
  ]:
    exact = exact_success(engine, params, problem, read)
    error = (exact * (1 - exact) / ROLLOUTS) ** 0.5
    assert 0.1 < exact < 0.9 and abs(tried.share((problem, read)) - exact) < 4 * error


def test_every_sample_counts_at_each_step_end_that_it_passes(tried, tokenizer):
  right, passed = {}, {}
  for (problem, start), texts in tried.sampled.items():
    for text in texts:
      for prefix in tried.prefixes(problem, text):
        if len(prefix[1]) >= len(start):
          passed[prefix] = passed.get(prefix, 0) + 1
          right[prefix] = right.get(prefix, 0) + tried.is_right((problem, text))
  assert len(passed) > 8
  for prefix, count in passed.items():
    assert tried.share(prefix) == right[prefix] / count
  assert tried.cost["rollouts"] == 7 * ROLLOUTS
  written = sum(
    len(text) - len(start) for (_, start), texts in tried.sampled.items() for text in texts
  )
  assert tried.cost["forward_tokens"] == written


def test_a_prefix_goes_on_as_the_game_that_it_was_taken_from(engine, params):
  """Prefilled or decoded, the same tokens follow for the same key."""
  rows = 4
  keys = jax.random.split(jax.random.key(1), rows)
  batch = engine.encode(PROBLEMS, rows)
  sample_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
  whole = engine.decode(params, batch, sample_keys, 1.0)
  prefixes = {
    **batch,
    "completion": np.where(np.arange(MAX_TOKENS) < 2, whole["completion"], 0),
    "length": np.minimum(whole["length"], 2).astype(np.int32),
  }
  out = engine.roll_out(params, prefixes, keys, 2, 1.0, verify_inside=False)
  np.testing.assert_array_equal(out.completion[:, 0], whole["completion"])
  np.testing.assert_array_equal(out.length[:, 0], whole["length"])
  assert (out.completion[:, 1] != whole["completion"]).any(), "other samples are other ones"
  is_odd = whole["completion"][:, :2].sum(axis=1) % 2 == 1
  lost = (prefixes["length"] == 2) & is_odd
  np.testing.assert_array_equal((out.alive < prefixes["length"][:, None]).all(axis=1), lost)
  stopped = engine.roll_out(params, prefixes, keys, 2, 1.0, verify_inside=True)
  assert (stopped.length[lost] == 2).all() and lost.any()


class Table:
  """What `first_errors` asks of `Tried`, with known shares; completions are their step ends."""

  def __init__(self, shares, right):
    self.shares, self.right, self.asked = shares, right, set()

  def prefixes(self, problem, ends):
    return [(problem, end) for end in ends]

  def is_right(self, completion):
    return self.right[completion[0]]

  def measure(self, prefixes):
    self.asked.update(prefixes)

  def share(self, prefix):
    return self.shares[prefix[0]][prefix[1]]


def test_bisection_finds_the_first_error_that_looking_everywhere_finds():
  random, steps = np.random.default_rng(0), 9
  shares, right, looked = {}, {}, {}
  for number in range(60):
    error = int(random.integers(0, steps + 1))
    row = [float(random.uniform(0.1, 1)) if e < error else 0.0 for e in range(steps)]
    shares[number], right[number] = row, bool(error == steps and random.random() < 0.5)
    looked[number] = next((e for e, share in enumerate(row) if share == 0), steps)
  tried = Table(shares, right)
  found = first_errors(tried, [(number, tuple(range(steps))) for number in shares])
  assert found == list(looked.values()) and {0, steps} < set(found)
  assert len(tried.asked) <= 4 * 60 < steps * 60, "4 = log2 of 10 places, rounded up"


def test_bisection_calls_nothing_hopeless_through_which_a_sample_ended_right():
  """A right sample in the half that bisection never looked at outweighs its guess."""
  tried = Table({0: [1.0, 0.0, 0.0, 0.25, float("nan")]}, {0: False})
  tried.sampled = tried.asked
  guesses = _bisected(tried, [(0, tuple(range(5)))])
  assert (0, 3) not in tried.asked and (0, 3) not in guesses, "its label is its share"
  assert guesses == {(0, 4): 0.0}


def test_labels_survive_the_disk_and_hold_what_was_measured(engine, params, tokenizer, tmp_path):
  step, end = tokenizer.step_id, tokenizer.end_id
  game = (step, 40, end)
  given = [(PROBLEMS[0], [game]), (PROBLEMS[1], [])]
  for labeller in ("samples", "binary_search"):
    labels, cost = label(
      engine, params, given, labeller, rollouts=2, samples=2, explored=2, seed=3, batch_size=8
    )
    row = next(i for i in range(len(labels)) if tuple(labels.tokens[i, : labels.length[i]]) == game)
    assert np.flatnonzero(np.isfinite(labels.success[row])).tolist() == [0, 1, 3]
    assert labels.success[row, 3] == 0.0, "the end's label is the verdict"
    assert np.nanmin(labels.success) >= 0 and np.nanmax(labels.success) <= 1
    assert cost["rollouts"] <= cost["rollouts_exhaustive"]
    labels.save(tmp_path / "labels.npz")
    again = StepLabels.load(tmp_path / "labels.npz")
    for name, array in vars(labels).items():
      np.testing.assert_array_equal(array, getattr(again, name))
  (tmp_path / "labels.npz").write_bytes(b"torn")
  with pytest.raises(UserError, match="cannot be read"):
    StepLabels.load(tmp_path / "labels.npz")


def test_steps_end_at_their_delimiters(tokenizer):
  step, think, end = tokenizer.step_id, tokenizer.end_think_id, tokenizer.end_id
  assert step_ends(tokenizer, [30, step, 31, think, 32, end, step]) == [0, 2, 4, 6]
  assert step_ends(tokenizer, []) == [0]


def test_impossible_settings_are_one_sentence(engine, params):
  with pytest.raises(UserError, match="labeller 'dice' is unknown"):
    label(engine, params, [], "dice")
  with pytest.raises(UserError, match="samples=0 must be at least 1,"):
    label(engine, params, [], samples=0)
