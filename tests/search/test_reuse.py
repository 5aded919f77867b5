"""Subtree reuse: what is inherited is what was there, and the search goes on as if it never
stopped."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chained import ROWS, C, V, match, played
from tables import QUICK, EvenSum, path_of

from jaxzero.errors import UserError
from jaxzero.models.transformer import bind, init_params
from jaxzero.search import play as play_lib
from jaxzero.search import reuse
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.mcts import most_inherited, most_nodes
from jaxzero.search.networks import Recompute
from jaxzero.search.play import PlayConfig
from jaxzero.search.rounds import considered_visits
from jaxzero.search.select import root_visits
from jaxzero.search.tree import NO_NODE, at, plant

MOVES = 4
# Q-values weigh more with every visit, so the order of actions changes even within a first pass.
GUMBEL = TreeConfig(
  order="gumbel",
  num_simulations=24,
  num_candidates=6,
  max_considered=3,
  value_scale=2.0,
  maxvisit_init=2.0,
  reuse=True,
)
LAZY = dataclasses.replace(GUMBEL, parallel="lazy")
# Nothing is dropped: the whole vocabulary is offered, and a subtree is never too large.
DIVES = dataclasses.replace(GUMBEL, rollout=True, num_nodes=40)
PUCT = dataclasses.replace(GUMBEL, order="puct", num_candidates=V, num_nodes=24 * MOVES)
EXACT = ("token", "candidates", "visit_counts")


@pytest.fixture(scope="module")
def gumbel():
  return played(GUMBEL, MOVES)


@functools.partial(jax.jit, static_argnums=4, compiler_options=QUICK)
def inherit(past, candidates, value, net, keep):
  """Below new roots: the subtree, its source, and its state."""
  logits = jnp.zeros(candidates.shape)
  nodes, depth = past.tree.path.shape[1:]
  fresh = plant(nodes, depth, candidates, logits, value, jnp.zeros((ROWS, 1), jnp.int32))
  tree, source = reuse.subtree(past, fresh, keep)
  return tree, source, net.inherit(net.slots, source)


def nodes_of(tree, state, row, below=()):
  """A row's linked nodes under a path of tokens: their paths from there, and all that is known."""
  fields = ("visits", "value", "raw_value", "reward", "discount", "terminal", "right", "forced")
  fields += ("candidates", "prior_logits", "judge")
  found = {}
  for node in range(1, tree.parent.shape[1]):
    parent, action = tree.parent[row, node], tree.action[row, node]
    if parent < 0 or tree.children[row, parent, action] != node:
      continue
    path = path_of(tree, row, node)
    assert parent < node and tree.depth[row, node] == tree.depth[row, parent] + 1
    assert tree.candidates[row, parent, action] == path[-1]
    assert path == (*(path_of(tree, row, parent) if parent else ()), path[-1])
    if path[: len(below)] == below and path != below:
      known = [np.asarray(getattr(tree, name)[row, node]).tolist() for name in fields]
      known.append([c >= 0 for c in tree.children[row, node]])
      found[path[len(below) :]] = (*known, int(state[row, node - 1]))
  return found


@pytest.mark.parametrize("keep", [24, 3])
def test_a_subtree_is_what_hung_below_its_root(gumbel, keep):
  game, out = gumbel[1]
  old = jax.device_get(out.tree)
  first = np.asarray(at(out.tree.children, jnp.zeros(ROWS, jnp.int32)))
  visits = np.asarray(out.visit_counts)
  root = first[np.arange(ROWS), visits.argmax(axis=1)]
  grandchild = old.children[np.arange(ROWS), root].max(axis=1)
  root = np.where((np.arange(ROWS) % 4 == 3) & (grandchild > 0), grandchild, root)
  root[0], root[1] = 0, NO_NODE
  random = np.random.default_rng(0)
  candidates = np.stack([random.permutation(V)[: GUMBEL.num_candidates] for _ in range(ROWS)])
  past = reuse.Past(tree=out.tree, node=jnp.asarray(root))
  net = game.net.replace(slots=out.state)
  value = jnp.full(ROWS, 0.25)
  tree, _, state = jax.device_get(inherit(past, jnp.asarray(candidates), value, net, keep))
  dropped = 0
  for row in range(ROWS):
    got = nodes_of(tree, state, row)
    below = path_of(old, row, root[row]) if root[row] > 0 else None
    there = nodes_of(old, out.state, row, below) if below else {}
    offered = [path for path in there if path[0] in candidates[row]]
    dropped += len(there) - len(offered)
    assert list(got) == offered[:keep], "in order of creation, the oldest"
    linked = -2  # whose children are there: those that were dropped are gone
    for path, known in got.items():
      assert known[:linked] == there[path][:linked] and known[-1] == there[path][-1]
      assert sum(known[linked]) == sum(other[:-1] == path for other in got)
    children = [(k[0], k[3] + k[4] * k[1]) for path, k in got.items() if len(path) == 1]
    total = 1 + sum(n for n, _ in children)
    assert tree.visits[row, 0] == total
    mean = (0.25 + sum(n * q for n, q in children)) / total
    np.testing.assert_allclose(tree.value[row, 0], mean, atol=1e-5)
    assert (tree.parent[row, len(got) + 1 :] == NO_NODE).all()
  assert dropped and not nodes_of(tree, state, 0) and not nodes_of(tree, state, 1)


class Whole:
  """PUCT in plain Python, on a tree that is never thrown away: a root moves down in it."""

  def __init__(self, match, row):
    self.net, self.rules = match.net, jax.device_get(match.rules)
    self.logits, self.values = np.asarray(match.net.logits), np.asarray(match.net.values)
    self.root = self.node(int(match.net.code[row]), 0)
    self.root["prior"] = np.exp(np.asarray(match.game.logits[row], float))
    self.root["value"] = float(match.game.value[row])

  def node(self, code, depth, reward=0.0, discount=1.0, ended=False):
    logits = self.logits[code % 1009].astype(float)
    prior = np.exp(logits - logits.max())
    raw = 0.0 if ended else 1 / (1 + np.exp(-float(self.values[code % 1009])))
    return dict(
      code=code,
      depth=depth,
      reward=reward,
      discount=discount,
      ended=ended,
      prior=prior / prior.sum(),
      raw=raw,
      value=raw,
      visits=0 if depth else 1,
      children={},
    )

  def child(self, node, token):
    if token not in node["children"]:
      depth, code = node["depth"], (node["code"] * 17 + token + 1) % 2**32
      table = depth % self.rules.rewards.shape[0]
      ended = bool(self.rules.ends[table, token]) or C - depth <= 1
      discount = 0.0 if ended else float(self.rules.discounts[table, token])
      reward = float(self.rules.rewards[table, token])
      node["children"][token] = self.node(code, depth + 1, reward, discount, ended)
    return node["children"][token]

  def select(self, node):
    visits, q = np.zeros(V), np.zeros(V)
    for token, child in node["children"].items():
      visits[token] = child["visits"]
      q[token] = child["reward"] + child["discount"] * child["value"]
    seen = np.where(visits > 0, q, node["value"])
    low, high = min(node["value"], seen.min()), max(node["value"], seen.max())
    q = (np.where(visits > 0, q, low) - low) / max(high - low, 1e-8)
    n = node["visits"]
    weight = np.sqrt(n) * (1.25 + np.log((n + 19653) / 19652))
    return int(np.argmax(q + weight * node["prior"] / (visits + 1)))

  def simulate(self):
    path = [self.root]
    while path[-1]["visits"] and not path[-1]["ended"]:
      path.append(self.child(path[-1], self.select(path[-1])))
    leaf = path.pop()
    leaf["visits"] += 1
    seen = leaf["reward"] + leaf["discount"] * leaf["raw"]
    for node in reversed(path):
      node["value"] = (node["value"] * node["visits"] + seen) / (node["visits"] + 1)
      node["visits"] += 1
      seen = node["reward"] + node["discount"] * seen

  def visits(self):
    children = self.root["children"]
    return [children[token]["visits"] if token in children else 0 for token in range(V)]


def test_puct_goes_on_like_a_search_that_kept_its_whole_tree():
  record = played(PUCT, MOVES, noise=0.5)
  compared = 0  # searches that had something to go on from
  for row in range(ROWS):
    oracle = Whole(record[0][0], row)
    for _, out in record:
      for _ in range(PUCT.num_simulations):
        oracle.simulate()
      got = dict(zip(out.candidates[row].tolist(), out.visit_counts[row].tolist(), strict=True))
      assert [got[token] for token in range(V)] == oracle.visits()
      np.testing.assert_allclose(out.root_value[row], oracle.root["value"], atol=1e-4)
      compared += oracle.root["depth"] > 0
      oracle.root = oracle.child(oracle.root, int(out.token[row]))
      if oracle.root["ended"]:
        break
  assert compared > ROWS


def test_halving_runs_its_whole_schedule_on_new_visits(gumbel):
  schedule = considered_visits(GUMBEL.max_considered, GUMBEL.num_simulations)
  expected, some = np.bincount(schedule, minlength=GUMBEL.num_simulations), 0
  for game, out in gumbel:
    before = inherit(game.past, out.candidates, game.game.value, game.net, most_inherited(GUMBEL))
    inherited = np.asarray(root_visits(before[0]))
    new = np.asarray(out.visit_counts) - inherited
    assert (new >= 0).all()
    for row in range(ROWS):
      at_least = [(new[row] > visits).sum() for visits in range(GUMBEL.num_simulations)]
      np.testing.assert_array_equal(at_least, expected)
      move = np.flatnonzero(np.asarray(out.candidates[row]) == int(out.token[row]))
      assert new[row, move] == new[row].max()
    some += (inherited > 0).sum()
  assert some > MOVES * ROWS / 2


def test_visits_are_conserved_and_most_of_them_are_had_for_nothing(gumbel):
  plain = played(dataclasses.replace(GUMBEL, reuse=False), MOVES)
  price = {}
  for name, record in {"reuse": gumbel, "plain": plain}.items():
    for _, out in record:
      total = np.asarray(out.visit_counts).sum(axis=1)
      np.testing.assert_array_equal(np.asarray(out.tree.visits[:, 0]), 1 + total)
      assert (np.asarray(out.nodes) <= most_nodes(GUMBEL)).all()
    nodes = sum(int(out.nodes.sum()) for _, out in record[1:])
    price[name] = nodes / sum(int(out.visit_counts.sum()) for _, out in record[1:])
  print(price)
  assert price["reuse"] < 0.8 * price["plain"]


def test_nothing_inherited_is_a_plain_search(gumbel):
  reused, plain = gumbel[0][1], match(dataclasses.replace(GUMBEL, reuse=False)).think()
  for name in (*EXACT, "weights", "root_value", "nodes"):
    np.testing.assert_array_equal(getattr(reused, name), getattr(plain, name))


def test_a_pass_in_one_forward_inherits_as_one_leaf_at_a_time(gumbel):
  lazy = played(LAZY, MOVES)
  for (_, one), (_, many) in zip(gumbel, lazy, strict=True):
    for name in EXACT:
      np.testing.assert_array_equal(getattr(many, name), getattr(one, name))
    np.testing.assert_allclose(many.weights, one.weights, atol=1e-4)
    assert int(many.forwards) < int(one.forwards)
    assert int(many.nodes.max()) <= most_nodes(LAZY)


def test_dives_are_inherited_with_all_their_tokens():
  past: set = set()
  for game, out in jax.device_get(played(DIVES, moves=3)):
    assert (out.nodes <= most_nodes(DIVES)).all()
    np.testing.assert_array_equal(out.tree.visits[:, 0], 1 + out.visit_counts.sum(axis=1))
    now = set()
    for row in range(ROWS):
      prefix = tuple(game.game.completion[row, : game.game.length[row]].tolist())
      now |= {(row, *prefix, *path) for path in nodes_of(out.tree, out.state, row)}
    inherited = len(now) - out.nodes.sum()
    assert bool(inherited) == bool(past) and inherited <= len(now & past)
    past |= now


def test_a_row_that_leaves_its_tree_inherits_nothing(gumbel):
  _, out = gumbel[0]
  past = reuse.Past(tree=out.tree, node=jnp.zeros(ROWS, jnp.int32))
  absent = np.setdiff1d(np.arange(V), np.asarray(out.candidates[0]))[0]
  token = out.token.at[0].set(int(absent))
  moving = jnp.arange(ROWS) != 1
  node = np.asarray(reuse.follow(past, token, moving).node)
  assert node[0] == NO_NODE and node[1] == 0 and (node[2:] > 0).all()
  np.testing.assert_array_equal(
    np.asarray(out.tree.token)[2:, :][range(ROWS - 2), node[2:]], token[2:]
  )
  again = reuse.follow(past.replace(node=jnp.full(ROWS, NO_NODE)), token, moving)
  assert (np.asarray(again.node) == NO_NODE).all()


TINY = PlayConfig(
  tree=dataclasses.replace(
    GUMBEL, num_simulations=12, num_candidates=4, maxvisit_init=50.0, fork_threshold=0.9
  ),
  max_searches=6,
  max_tokens=12,
)


@pytest.fixture(scope="module")
def thoughts(tiny_model):
  """Plays of a random transformer by a budget; `anew` compiles them again."""
  verifier = EvenSum()
  params = init_params(tiny_model, 16, jax.random.key(1))
  params["value"] = jax.random.normal(jax.random.key(2), params["value"].shape)
  params["unembed"] = 2.0 * params["unembed"]
  prompts = jax.random.randint(jax.random.key(3), (4, 5), 3, 16)
  keys, ones = jax.random.split(jax.random.key(4), 4), jnp.ones(4)

  def play(params, budget):
    model = bind(tiny_model, 16, params)
    judge = verifier.start(prompts)
    batch = (
      prompts,
      jnp.arange(2, 6),
      judge,
      keys,
      budget,
      0.3 * ones,
      ones,
      make_weights(TINY.tree, 1.0),
    )
    layers = model.unstack()
    return play_lib.play(model, layers, *batch, TINY, verifier, verifier.end_id, (), False, False)

  compiled = jax.jit(play, compiler_options=QUICK)

  def think(budget=400, anew=False):
    run = jax.jit(lambda *args: play(*args), compiler_options=QUICK) if anew else compiled
    return jax.device_get(run(params, jnp.full(4, budget)))

  return think


class Recomputed(Recompute):
  """No KV at all; the cache of what is played rests as it is."""

  def __init__(self, model, layers, game):
    super().__init__(model, game)

  def initial_state(self):
    return self.game.cache


def test_kv_moves_with_its_nodes(thoughts, monkeypatch):
  cached = thoughts()
  monkeypatch.setattr(play_lib, "TreeCache", Recomputed)
  recomputed = thoughts(anew=True)
  assert (cached.moves.visit_counts.sum(axis=-1) > TINY.tree.num_simulations).sum() > 10
  for x, y in zip(jax.tree.leaves(cached.moves), jax.tree.leaves(recomputed.moves), strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)
  np.testing.assert_array_equal(cached.completion, recomputed.completion)
  np.testing.assert_array_equal(cached.forward_tokens, recomputed.forward_tokens)


def test_the_budget_is_a_cap_on_new_nodes(thoughts):
  N = TINY.tree.num_simulations
  for budget in (0, 11, 45, 400):
    out = thoughts(budget)
    searches = out.moves.searched.sum(axis=1)
    assert (out.forward_tokens <= budget).all()
    assert (out.forward_tokens <= out.length + N * searches).all()
    assert (out.forward_tokens >= out.length).all()
  inherited = out.moves.visit_counts.sum(axis=-1)[out.moves.searched] - N
  assert (inherited >= 0).all() and (inherited > 0).any()


@pytest.mark.parametrize(
  "changes",
  [dict(order="guided"), dict(parallel="exact"), dict(backend="mctx")],
  ids=lambda changes: "".join(changes),
)
def test_reuse_is_refused_where_it_is_not_made_for(changes):
  with pytest.raises(UserError, match="reuse"):
    dataclasses.replace(GUMBEL, **changes).check(None)


def test_reuse_is_granted():
  for config in (GUMBEL, LAZY, PUCT):
    config.check(V)
