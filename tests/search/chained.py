"""Games whose next move depends on the whole way there, searched move after move."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
from tables import bare_game, search, table_rules

from jaxzero.models.transformer import Output
from jaxzero.search import reuse
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.mcts import tree_slots
from jaxzero.search.tree import NO_NODE, at, plant

ROWS, V, C = 16, 8, 10


@chex.dataclass(frozen=True)
class Chained:
  """What follows depends on the whole way there, by a code that a node keeps as others keep KV."""

  logits: jax.Array  # [K, V]
  values: jax.Array  # [K], logits of P(right)
  code: jax.Array  # [B] uint32: the root's
  slots: jax.Array  # [B, S] uint32: one for every node below

  def initial_state(self):
    return self.slots

  def evaluate(self, state, tree, node, present):
    parent = at(tree.parent, node)
    above = jnp.where(parent > 0, at(state, jnp.maximum(parent - 1, 0)), self.code[:, None])
    code = self.next_code(above, at(tree.token, node))
    slot = jnp.where(present, node - 1, state.shape[1])
    state = state.at[jnp.arange(len(state))[:, None], slot].set(code, mode="drop")
    return self.look_up(code), state

  def inherit(self, state, source):
    return state.at[:, : source.shape[1]].set(at(state, jnp.maximum(source - 1, 0)))

  def next_code(self, code, token):
    return code * 17 + token.astype(jnp.uint32) + 1

  def look_up(self, code):
    entry = code % len(self.values)
    return Output(self.logits[entry], self.values[entry])


@dataclasses.dataclass
class Match:
  """Games in progress, searched move after move."""

  config: TreeConfig
  rules: object
  net: Chained
  game: object
  past: reuse.Past
  noise: float = 1.0
  plies: int = 0

  def think(self):
    key = jax.random.fold_in(jax.random.key(7), self.plies)
    gumbel = self.noise * jax.random.gumbel(key, (ROWS, V))
    weights = make_weights(self.config, 1.0)
    arguments = (self.game, self.net, self.config, gumbel, self.rules, self.game.judge, weights)
    return search(*arguments, past=self.past)

  def play(self, out):
    """Commits the moves that a search advises."""
    game, net, past = _commit(self.game, self.net, out)
    return dataclasses.replace(self, game=game, net=net, past=past, plies=self.plies + 1)


@jax.jit
def _commit(game, net, out):
  net = net.replace(code=net.next_code(net.code, out.token), slots=out.state)
  said = net.look_up(net.code)
  here = jnp.arange(C) == game.length[:, None]
  game = game.replace(
    completion=jnp.where(here, out.token[:, None], game.completion),
    length=game.length + 1,
    logits=jax.nn.log_softmax(said.logits),
    value=jax.nn.sigmoid(said.value_logits),
    judge=game.judge + 1,
  )
  past = reuse.Past(tree=out.tree, node=jnp.zeros(ROWS, jnp.int32))
  return game, net, reuse.follow(past, out.token, jnp.ones(ROWS, bool))


def match(config, seed=1, noise=1.0, ends=0.1):
  keys = jax.random.split(jax.random.key(seed), 4)
  game = bare_game(keys[0], V, C, ROWS)
  S, A = tree_slots(config), config.num_candidates
  net = Chained(
    logits=1.5 * jax.random.normal(keys[1], (1009, V)),
    values=jax.random.normal(keys[2], (1009,)),
    code=jnp.arange(ROWS, dtype=jnp.uint32),
    slots=jnp.zeros((ROWS, S), jnp.uint32),
  )
  nothing = jnp.zeros((ROWS, A))
  root = plant(S + 1, C, nothing.astype(jnp.int32), nothing, game.value, game.judge)
  past = reuse.Past(tree=root, node=jnp.full(ROWS, NO_NODE))
  return Match(config, table_rules(keys[3], V, ends=ends), net, game, past, noise)


def played(config, moves, **settings):
  """The searches of a few moves, each with the match as it stood before."""
  game, record = match(config, **settings), []
  for _ in range(moves):
    out = game.think()
    record.append((game, out))
    game = game.play(out)
  return record
