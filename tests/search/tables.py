"""Games that are tables: exact, instant, and hard on a search that is not quite right."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from jaxzero.models.transformer import Output
from jaxzero.search import frontier as frontier_lib
from jaxzero.search import mcts
from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.frontier import Expedition
from jaxzero.search.game import Game
from jaxzero.search.rules import Ruling
from jaxzero.search.tree import at

# Tables take no time to compute; most of what these tests take is compiling.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

search = jax.jit(
  mcts.search,
  static_argnames=("config", "delimiters", "stop_when_found"),
  compiler_options=QUICK,
)


@chex.dataclass(frozen=True)
class Table:
  """A network that is a table: what follows depends on depth and last token alone."""

  logits: jax.Array  # [D, V, V]
  values: jax.Array  # [D, V], logits of P(right)

  def initial_state(self):
    return ()

  def evaluate(self, state, tree, node, present):
    depth, token = at(tree.depth, node) - 1, at(tree.token, node)
    depth = depth % self.logits.shape[0]
    return Output(self.logits[depth, token], self.values[depth, token]), state


@chex.dataclass(frozen=True)
class TableRules:
  """Rewards, discounts and ends by depth and token; the state is the depth."""

  rewards: jax.Array  # [D, V]
  discounts: jax.Array  # [D, V]
  ends: jax.Array  # [D, V] bool
  discounted = True

  def play(self, judge, token, room):
    depth = judge[..., 0] % self.rewards.shape[0]
    terminal = self.ends[depth, token] | (room <= 1)
    reward = self.rewards[depth, token]
    return Ruling(
      judge=judge + 1,
      terminal=terminal,
      right=terminal & (reward > 1.0),
      reward=reward,
      discount=jnp.where(terminal, 0.0, self.discounts[depth, token]),
    )


@chex.dataclass(frozen=True)
class EndlessRules(TableRules):
  """No room is ever short: what ends a path is the deepest that a tree may go."""

  def play(self, judge, token, room):
    return TableRules.play(self, judge, token, jnp.full_like(room, 99))


@chex.dataclass(frozen=True)
class VerdictRules(TableRules):
  """Only an end is worth something: 1 where it is right."""

  discounted = False

  def play(self, judge, token, room):
    ruling = TableRules.play(self, judge, token, room)
    right = ruling.terminal & (ruling.reward > 0.0)
    return ruling.replace(
      right=right, reward=right.astype(jnp.float32), discount=1.0 - ruling.terminal
    )


def table(key, V, D=3, scale=2.0):
  a, b = jax.random.split(key)
  return Table(logits=scale * jax.random.normal(a, (D, V, V)), values=jax.random.normal(b, (D, V)))


def table_rules(key, V, D=3, ends=0.2, kind=TableRules):
  a, b, c = jax.random.split(key, 3)
  return kind(
    rewards=jax.random.normal(a, (D, V)),
    discounts=jax.random.uniform(b, (D, V), minval=0.5, maxval=1.0),
    ends=jax.random.uniform(c, (D, V)) < ends,
  )


def bare_game(key, V, C, rows):
  return Game(
    prompts=jnp.zeros((rows, 1), jnp.int32),
    prompt_length=jnp.ones(rows, jnp.int32),
    completion=jnp.zeros((rows, C), jnp.int32),
    length=jnp.zeros(rows, jnp.int32),
    logits=jax.nn.log_softmax(2.0 * jax.random.normal(key, (rows, V))),
    value=jax.random.uniform(key, (rows,)),
    values=jnp.zeros((rows, C)),
    judge=jnp.zeros((rows, 1), jnp.int32),
    cache=(),
  )


def weights(**changes):
  """The defaults of `TreeConfig`, and changes."""
  return make_weights(dataclasses.replace(TreeConfig(), **changes), 1.0)


def path_of(tree, row, node):
  """The tokens from below the root to a node; numpy arrays."""
  return tuple(tree.token[row, tree.path[row, node, : tree.depth[row, node]]].tolist())


def paths(tree, row, size):
  """The paths of a row's nodes, in the order in which they were made."""
  return [path_of(tree, row, node) for node in range(1, size)]


def explore(game, net, rules, config, gumbel, keys, limit, settings, stop=False):
  """A frontier grown from where the game stands, the score of the edge that each step took
  [steps, B], and which rows are still open."""
  expedition = Expedition(
    config=config, network=net, rules=rules, weights=settings, stop_when_found=stop
  )
  _, candidates = jax.lax.top_k(game.logits + gumbel, config.num_candidates)
  pick = lambda x: jnp.take_along_axis(x, candidates, axis=1)  # noqa: E731
  depth = game.completion.shape[1]
  tree = tree_lib.plant(
    config.capacity + 1, depth, candidates, pick(game.logits), game.value, game.judge
  )
  frontier = frontier_lib.begin(
    tree, net.initial_state(), limit, depth - game.length, keys, pick(gumbel), expedition
  )

  def step(frontier, _):
    exists = jnp.arange(tree.parent.shape[1]) < frontier.size[:, None]
    top = jnp.max(jnp.where(exists, frontier.best, -jnp.inf), axis=1)
    top = jnp.where(frontier_lib.is_open(expedition, frontier), top, -jnp.inf)
    return frontier_lib.step(expedition, frontier), top

  frontier, tops = jax.lax.scan(step, frontier, length=config.capacity)
  return frontier, tops, frontier_lib.is_open(expedition, frontier)


def row_keys(seed, rows):
  return jax.random.key_data(jax.random.split(jax.random.key(seed), rows))


class EvenSum:
  """A verifier: right are ended completions whose tokens' sum is even; one token loses at once."""

  state_size, end_id, losing = 3, 2, 7

  def start(self, problem_array):
    return jnp.zeros((*problem_array.shape[:-1], 3), jnp.int32)

  def read(self, state, token):
    total, ended, lost = state[..., 0], state[..., 1], state[..., 2]
    more = jnp.stack(
      [total + token, ended | (token == self.end_id), lost | (token == self.losing)], axis=-1
    )
    return jnp.where(ended[..., None] > 0, state, more)

  def lost(self, state):
    return state[..., 2] > 0

  def right(self, state):
    return (state[..., 1] > 0) & (state[..., 2] == 0) & (state[..., 0] % 2 == 0)
