"""One tree a problem, grown along its paths on the whole budget; rows are refilled as they finish.

`start` plants trees, `advance` grows all rows until some are done, `swap` takes those out and puts
fresh ones in their place. What a row does depends on its problem and key alone.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxzero.models.scored import Model
from jaxzero.models.transformer import Block
from jaxzero.search import frontier as frontier_lib
from jaxzero.search import game as game_lib
from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.expand import Weights, policy
from jaxzero.search.frontier import Expedition, Frontier
from jaxzero.search.game import Game
from jaxzero.search.mcts import Found, find, improved_policies
from jaxzero.search.networks import TreeCache
from jaxzero.search.rules import rules_of
from jaxzero.search.tree import at
from jaxzero.tasks.base import DeviceVerifier


@chex.dataclass(frozen=True)
class Thoughts:
  """B rows, each with a tree of its own problem."""

  number: jax.Array  # [B] int32: which problem; -1: an empty row
  game: Game  # without its cache, which the frontier carries
  frontier: Frontier
  facts_judge: jax.Array  # [B, S] int32, the verifier's first state
  positions: jax.Array  # [B] int32: positions put through the model in this row, idle ones too


@chex.dataclass(frozen=True)
class Sketch:
  """A tree as far as the choice among its completions reads it; M node slots, the root first."""

  parent: jax.Array  # [R, M] int32
  token: jax.Array  # [R, M] int32
  value: jax.Array  # [R, M] float32: P(right) by the value head
  ended: jax.Array  # [R, M] bool: a completion ends here, with its end token
  right: jax.Array  # [R, M] bool: the verifier, where it was heard, found it right
  log_p: jax.Array  # [R, M] float32: the policy's log-probability of the path from the root


@chex.dataclass(frozen=True)
class Insight:
  """What became of R problems; C the longest completion, A candidates a node."""

  number: jax.Array  # [R] int32
  played: Found  # the first completion that ended: the game as played
  played_right: jax.Array  # [R] bool
  answer: Found  # the verified completion, where the search heard the verifier
  answer_right: jax.Array  # [R] bool
  forward_tokens: jax.Array  # [R] int32
  ends: jax.Array  # [R] int32: completions that ended
  sketch: Sketch
  candidates: jax.Array  # [R, C, A] int32 at the answer's moves
  weights: jax.Array  # [R, C, A + 1] float32: improved policies there
  values: jax.Array  # [R, C] float32: what the tree says of P(right) there
  visit_counts: jax.Array  # [R, C, A] int32


def start(
  model: Model,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  judge: jax.Array,
  keys: jax.Array,
  number: jax.Array,
  limit: jax.Array,
  noise: jax.Array,
  expedition_of,
  weights: Weights,
  config: TreeConfig,
  max_tokens: int,
) -> Thoughts:
  """Plants R trees: prompts [R, P], keys [R, 2] raw, number and limit [R] int32, noise [R]."""
  game = game_lib.start(
    model, layers, prompts, prompt_length, judge, max_tokens, tree_slots=config.capacity
  )
  vocab_size = game.logits.shape[1]
  logits = policy(game.logits, weights.temperature)

  def draw(key):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), 0)
    return jax.random.gumbel(key, (vocab_size,))

  gumbel = jax.vmap(draw)(keys) * noise[:, None]
  _, candidates = jax.lax.top_k(logits + gumbel, config.num_candidates)
  tree = tree_lib.plant(
    config.capacity + 1,
    max_tokens,
    candidates,
    jnp.take_along_axis(logits, candidates, axis=1),
    game.value,
    judge,
  )
  frontier = frontier_lib.begin(
    tree,
    game.cache,
    limit=jnp.where(prompt_length > 0, limit, 0),
    room=jnp.full_like(limit, max_tokens),
    keys=keys,
    root_gumbel=jnp.take_along_axis(gumbel, candidates, axis=1),
    expedition=expedition_of(game),
  )
  return Thoughts(
    number=number,
    game=game.replace(cache=()),
    frontier=frontier,
    facts_judge=judge,
    positions=jnp.zeros_like(limit),
  )


def expedition(
  model: Model,
  layers: list[Block],
  game: Game,
  weights: Weights,
  config: TreeConfig,
  verifier: DeviceVerifier,
  end_id: int,
  verify_inside: bool,
  stop_when_found: bool,
) -> Expedition:
  return Expedition(
    config=config,
    network=TreeCache(model, layers, game),
    rules=rules_of(verifier, end_id, verify_inside),
    weights=weights,
    stop_when_found=stop_when_found and verify_inside and not config.num_samples,
  )


def advance(setting: Expedition, thoughts: Thoughts, quota: jax.Array) -> Thoughts:
  """Grows all rows until `quota` of them (a scalar) are done."""

  def unfinished(thoughts):
    return jnp.sum(~frontier_lib.is_open(setting, thoughts.frontier)) < quota

  def step(thoughts):
    return thoughts.replace(
      frontier=frontier_lib.step(setting, thoughts.frontier), positions=thoughts.positions + 1
    )

  return jax.lax.while_loop(unfinished, step, thoughts)


def swap(setting: Expedition, thoughts: Thoughts, fresh: Thoughts) -> tuple[Thoughts, Thoughts]:
  """Puts R fresh rows where R rows are done (or as good as any); returns all rows, and those R."""
  R = fresh.number.shape[0]
  busy = frontier_lib.is_open(setting, thoughts.frontier)
  rows = jnp.argsort(busy.astype(jnp.int32) * 2 + (thoughts.number < 0), stable=True)[:R]
  out = jax.tree.map(lambda x: x[rows], thoughts)
  new = jax.tree.map(lambda x, y: x.at[rows].set(y), thoughts, fresh)
  return new.replace(positions=thoughts.positions), out


def conclude(
  thoughts: Thoughts, config: TreeConfig, verifier: DeviceVerifier, end_id: int
) -> Insight:
  """What R rows have come to."""
  game, frontier, tree = thoughts.game, thoughts.frontier, thoughts.frontier.tree
  exists = jnp.arange(tree.parent.shape[1]) < frontier.size[:, None]
  answer = frontier.found
  # Where nothing ended, what was thought of last is all there is.
  last = frontier.size - 1
  played = find(game, tree, jnp.where(frontier.ends > 0, frontier.first_end, last))
  chosen = find(game, tree, answer)

  # One reading of both: the verifier is compiled once.
  both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), played, chosen)
  first = jnp.tile(thoughts.facts_judge, (2, 1))
  right = both.found & judge(verifier, first, both.completion, both.length)
  played_right, answer_right = jnp.split(right, 2)
  path = at(tree.path, answer)
  nodes = jnp.concatenate([jnp.zeros_like(path[:, :1]), path[:, :-1]], axis=1)
  on_path = jnp.arange(path.shape[1]) < at(tree.depth, answer)[:, None]
  nodes = jnp.where(on_path, nodes, 0)
  weights, _ = improved_policies(tree, nodes, config)
  visits = tree_lib.view(tree, nodes).children_visits
  return Insight(
    number=thoughts.number,
    played=played,
    played_right=played_right,
    answer=chosen,
    answer_right=answer_right,
    forward_tokens=frontier.size - 1,
    ends=frontier.ends,
    sketch=Sketch(
      parent=tree.parent,
      token=tree.token,
      value=tree.raw_value,
      ended=exists & tree.terminal & (tree.token == end_id),
      right=tree.right,
      log_p=frontier.log_p,
    ),
    candidates=at(tree.candidates, nodes),
    weights=weights,
    values=at(tree.value, nodes),
    visit_counts=visits.reshape(*nodes.shape, -1),
  )


def judge(
  verifier: DeviceVerifier, first: jax.Array, completion: jax.Array, length: jax.Array
) -> jax.Array:
  """The verdict [B] on whole completions [B, C]; first [B, S]: the verifier's first state."""

  def read(index, state):
    new = verifier.read(state, completion[:, index])
    return jnp.where((index < length)[:, None], new, state)

  return verifier.right(jax.lax.fori_loop(0, completion.shape[1], read, first))
