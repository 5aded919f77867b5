"""What a search advises: improved policies, the rest of the vocabulary, the way to the answer."""

import dataclasses

import jax
import jax.numpy as jnp
import mctx
import numpy as np
import pytest
from mctx._src.qtransforms import _compute_mixed_value
from tables import EvenSum, VerdictRules, bare_game, search, table, table_rules, weights

from jaxzero.search import mcts
from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.rules import Ruling, Verified

B, V = 32, 12
CONFIG = TreeConfig(order="gumbel", num_simulations=20, num_candidates=6, max_considered=4)


def think(config):
  keys = jax.random.split(jax.random.key(5), 4)
  game, net = bare_game(keys[0], V, 5, B), table(keys[1], V)
  rules = table_rules(keys[2], V, kind=VerdictRules)
  gumbel = jax.random.gumbel(keys[3], (B, V))
  return game, search(game, net, config, gumbel, rules, game.judge, weights())


def test_the_rest_bucket_is_what_a_full_vocabulary_would_hold():
  V, A = 30, 5
  random = np.random.default_rng(0)
  log_p = jax.nn.log_softmax(random.normal(size=(B, V)).astype(np.float32))
  candidates = np.stack([random.permutation(V)[:A] for _ in range(B)])
  q = random.normal(size=(B, A)).astype(np.float32)
  rest_q = random.normal(size=B).astype(np.float32)
  full = np.broadcast_to(rest_q[:, None], (B, V)).copy()
  np.put_along_axis(full, candidates, q, axis=1)
  policy = np.asarray(jax.nn.softmax(log_p + full))
  expected = np.take_along_axis(policy, candidates, axis=1)
  ours = mcts.improved_policy(jnp.take_along_axis(log_p, candidates, axis=1), q, rest_q)
  np.testing.assert_allclose(ours[:, :A], expected, atol=1e-6)
  np.testing.assert_allclose(ours[:, A], 1 - expected.sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("rescale", [False, True])
def test_untried_candidates_are_believed_as_much_as_the_rest_of_the_vocabulary(rescale):
  game, out = think(dataclasses.replace(CONFIG, rescale_values=rescale))
  np.testing.assert_allclose(out.weights.sum(axis=1), 1.0, atol=1e-5)
  prior = np.exp(np.take_along_axis(game.logits, out.candidates, axis=1))
  gain = out.weights[:, :-1] / prior
  rest_gain = out.weights[:, -1] / (1 - prior.sum(axis=1))
  untried = np.asarray(out.visit_counts) == 0
  assert untried.any()
  np.testing.assert_allclose(
    gain[untried], np.broadcast_to(rest_gain[:, None], gain.shape)[untried], rtol=1e-3
  )


def test_mixed_value_is_mctxs():
  _, out = think(CONFIG)
  seen = tree_lib.view(out.tree, jnp.zeros(B, jnp.int32))

  def reference(tree):
    return _compute_mixed_value(
      tree.raw_values[0],
      tree.qvalues(0),
      tree.children_visits[0],
      jax.nn.softmax(tree.children_prior_logits[0]),
    )

  np.testing.assert_allclose(mcts.mixed_value(seen), jax.vmap(reference)(seen), rtol=1e-5)


@pytest.mark.parametrize("order", ["gumbel", "puct"])
def test_a_search_over_the_whole_vocabulary_is_mctxs_own_policy(order):
  """The stock loop and ours share the selection; here nothing is shared but the table."""
  V, N, key = 6, 24, jax.random.key(3)
  config = TreeConfig(
    order=order, num_simulations=N, num_candidates=V, max_considered=4, value_scale=1.0
  )
  game, net = bare_game(key, V, N + 2, B), table(key, V)
  rules = table_rules(key, V, ends=0.0)
  ours = search(game, net, config, jnp.zeros((B, V)), rules, game.judge, weights())

  def recurrent_fn(_, rng, action, depth):
    del rng
    at = depth % 3
    out = mctx.RecurrentFnOutput(
      reward=rules.rewards[at, action],
      discount=rules.discounts[at, action],
      prior_logits=jax.nn.log_softmax(net.logits[at, action]),
      value=jax.nn.sigmoid(net.values[at, action]),
    )
    return out, depth + 1

  root = mctx.RootFnOutput(prior_logits=game.logits, value=game.value, embedding=game.length)
  if order == "gumbel":
    transform = lambda tree, node: mctx.qtransform_completed_by_mix_value(  # noqa: E731
      tree, node, value_scale=1.0, maxvisit_init=50.0, rescale_values=False
    )
    policy = lambda: mctx.gumbel_muzero_policy(  # noqa: E731
      None, key, root, recurrent_fn, N, qtransform=transform, max_num_considered_actions=4,
      gumbel_scale=0.0,
    )  # fmt: skip
  else:
    policy = lambda: mctx.muzero_policy(  # noqa: E731
      None, key, root, recurrent_fn, N, dirichlet_fraction=0.0, temperature=0.0
    )
  stock = jax.jit(policy)()
  by_candidate = lambda x: jnp.take_along_axis(x, ours.candidates, axis=1)  # noqa: E731
  np.testing.assert_array_equal(
    ours.visit_counts, by_candidate(stock.search_tree.summary().visit_counts)
  )
  np.testing.assert_allclose(ours.root_value, stock.search_tree.node_values[:, 0], atol=1e-5)
  if order == "gumbel":
    np.testing.assert_array_equal(ours.token, stock.action)
    np.testing.assert_allclose(ours.weights[:, :V], by_candidate(stock.action_weights), atol=1e-5)
    np.testing.assert_allclose(ours.weights[:, V], 0.0, atol=1e-5)
  else:
    share = ours.visit_counts / N
    np.testing.assert_allclose(ours.weights[:, :V], share, atol=1e-5)


TARGETS = jnp.array([[1, 1, 0], [3, 2, 0], [2, 0, 0], [1, 3, 0], [0, 0, 0]])


class TargetRules:
  """Right is one completion a row; a state holds the row's number and its tokens so far."""

  discounted = False

  def play(self, judge, token, room):
    row, length, tokens = judge[..., 0], judge[..., 1], judge[..., 2:]
    here = jnp.arange(3) == length[..., None]
    tokens = jnp.where(here, token[..., None], tokens)
    wanted = TARGETS[row]
    full = jnp.argmax(wanted == 0, axis=-1) + 1
    right = (length + 1 == full) & jnp.all(tokens == wanted, axis=-1)
    terminal = (token == 0) | (room <= 1)
    judge = jnp.concatenate([row[..., None], length[..., None] + 1, tokens], axis=-1)
    right &= terminal
    return Ruling(
      judge=judge,
      terminal=terminal,
      right=right,
      reward=right.astype(jnp.float32),
      discount=1.0 - terminal,
    )


@pytest.mark.parametrize("order", ["gumbel", "puct"])
def test_enough_simulations_find_the_only_right_answer_and_start_towards_it(order):
  V, rows = 4, len(TARGETS)
  config = TreeConfig(
    order=order, num_simulations=400, num_nodes=90, num_candidates=V, max_considered=V,
    value_scale=1.0,
  )  # fmt: skip
  key = jax.random.key(2)
  game, net = bare_game(key, V, 3, rows), table(key, V, scale=0.5)
  net = net.replace(values=jnp.full_like(net.values, -4.0))
  judge = jnp.concatenate([jnp.arange(rows)[:, None], jnp.zeros((rows, 4), jnp.int32)], axis=1)
  rules, noise = TargetRules(), jnp.zeros((rows, V))
  out = jax.jit(
    lambda game: mcts.search(game.replace(judge=judge), net, config, noise, rules, judge, weights())
  )(game)
  assert out.found.found.all()
  for row, target in enumerate(np.asarray(TARGETS)):
    completion = out.found.completion[row, : out.found.length[row]]
    np.testing.assert_array_equal(completion, target[: len(completion)])
    assert completion[-1] == 0
  np.testing.assert_array_equal(out.token, TARGETS[:, 0])
  assert (out.tree.right.sum(axis=1) == 1).all(), "the same end is never made twice"


def test_the_verifier_and_the_room_end_a_game():
  rules, verifier = Verified(EvenSum(), EvenSum.end_id), EvenSum()
  start = jnp.zeros((5, 3), jnp.int32)
  odd = verifier.read(start, jnp.full(5, 3))
  states = jnp.concatenate([start[:4], odd[:1]])
  tokens = jnp.array([EvenSum.end_id, 4, EvenSum.losing, 4, EvenSum.end_id])
  out = rules.play(states, tokens, jnp.array([9, 9, 9, 1, 9]))
  np.testing.assert_array_equal(out.terminal, [True, False, True, True, True])
  np.testing.assert_array_equal(out.right, [True, False, False, False, False])
  np.testing.assert_array_equal(out.reward, out.right)
  np.testing.assert_array_equal(out.discount, ~out.terminal)
