"""Whole episodes, token by token: forced tokens are played straight, forks are searched by values.

A fork is a position where the policy's most likely token has less than `fork_threshold` of the
mass. Rows wait for each other at forks, then all of them are searched in one batch. With
`TreeConfig.reuse` every search but the first goes on from what is left of the last one's tree.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from jaxzero.errors import UserError
from jaxzero.models.scored import Model
from jaxzero.models.transformer import Block
from jaxzero.search import game as game_lib
from jaxzero.search import mcts, reuse
from jaxzero.search import tree as tree_lib
from jaxzero.search.config import TreeConfig
from jaxzero.search.expand import Weights
from jaxzero.search.game import Game
from jaxzero.search.networks import TreeCache
from jaxzero.search.rules import rules_of
from jaxzero.search.tree import Tree
from jaxzero.tasks.base import DeviceVerifier


@dataclasses.dataclass(frozen=True)
class PlayConfig:
  """How an episode is thought out."""

  tree: TreeConfig = TreeConfig()
  max_searches: int = 1
  """Orders by values: forks searched in an episode, from its start; at later ones a token is
  sampled."""
  max_tokens: int = 30
  """The longest completion; an episode that reaches it is truncated and counts as wrong."""

  def check(self, vocab_size: int | None) -> None:
    """Raises UserError for episodes that cannot be played; None: whatever the vocabulary."""
    self.tree.check(vocab_size)
    if self.max_tokens < 2:
      raise UserError(f"max_tokens={self.max_tokens} must be at least 2.")


@chex.dataclass(frozen=True)
class Moves:
  """The moves of B episodes, C at most; a row's moves beyond its length are zeros."""

  searched: jax.Array  # [B, C] bool
  candidates: jax.Array  # [B, C, A] int32; -1 where not searched
  weights: jax.Array  # [B, C, A + 1] float32
  root_values: jax.Array  # [B, C] float32
  visit_counts: jax.Array  # [B, C, A] int32


@chex.dataclass(frozen=True)
class Played:
  """Finished episodes."""

  completion: jax.Array  # [B, C] int32
  length: jax.Array  # [B] int32
  finished: jax.Array  # [B] bool: it has ended, by the end token or lost
  right: jax.Array  # [B] bool: verdict of the episode as played
  values: jax.Array  # [B, C] float32: P(right) by the value head after each token
  found: mcts.Found  # a verified completion seen anywhere in the trees
  moves: Moves
  trees: Tree  # of the first search of the first `keep_trees` rows
  forward_tokens: jax.Array  # [B] int32: positions this row asked for, after the prompt
  positions: jax.Array  # [B] int32: positions put through the model for this row, idle ones too


@chex.dataclass(frozen=True)
class _State:
  game: Game
  token: jax.Array  # [B] int32, the next token of rows that move
  moving: jax.Array  # [B] bool
  waiting: jax.Array  # [B] bool: at a fork
  finished: jax.Array  # [B] bool
  tokens_left: jax.Array  # [B] int32
  searches: jax.Array  # [B] int32
  found: mcts.Found
  moves: Moves
  trees: Tree
  past: reuse.Past | None  # None: nothing is reused
  turn: jax.Array  # scalar int32
  positions: jax.Array  # scalar int32


def play(
  model: Model,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  judge: jax.Array,
  keys: jax.Array,
  budget: jax.Array,
  noise: jax.Array,
  temperature: jax.Array,
  weights: Weights,
  config: PlayConfig,
  verifier: DeviceVerifier,
  end_id: int,
  delimiters: tuple[int, ...],
  verify_inside: bool,
  stop_when_found: bool,
  reserve: int = 0,
  keep_trees: int = 1,
) -> Played:
  """Plays one episode a row; pure, to be called inside jit (and inside `shard_map`).

  Args:
    prompts: [B, P] int32, padded on the right; prompt_length: [B] int32, 0 for an empty row.
    judge: [B, S] int32, the verifier's first state of each problem.
    keys: [B] typed PRNG keys, one per episode, consumed.
    budget: [B] int32 forward tokens after the prompt; a cap. A row that cannot afford a search
      and `reserve` tokens more plays on without searching.
    noise: [B] float32, the scale of a root's Gumbel noise: 1 explores, 0 takes what looks best.
    temperature: [B] float32, of tokens sampled at forks that are not searched; 0: the likeliest.
    delimiters: tokens that end a run of forced tokens.
    verify_inside: whether the search hears the verifier, and a game ends where it is lost.
    stop_when_found: a row ends as soon as its tree holds a verified terminal.
    keep_trees: how many rows' first trees to return.
  """
  B = prompts.shape[0]
  A, C = config.tree.num_candidates, config.max_tokens
  slots, most_nodes = mcts.tree_slots(config.tree), mcts.most_nodes(config.tree)
  rules = rules_of(verifier, end_id, verify_inside)
  vocab_size = model.vocab_size
  chex.assert_shape([prompt_length, budget, noise, temperature, keys], (B,))

  def decide(
    game: Game,
    rows: jax.Array,
    finished: jax.Array,
    tokens_left: jax.Array,
    searches: jax.Array,
  ):
    """Splits rows [B] into those that wait at a fork and those that play on without a search."""
    fork = jnp.max(game.logits, axis=-1) < jnp.log(config.tree.fork_threshold)
    perturbed = game.logits + temperature[:, None] * token_noise(game.length, 0)
    sampled = jnp.argmax(perturbed, axis=-1)
    token = jnp.where(fork, sampled, jnp.argmax(game.logits, axis=-1))
    alive = rows & ~finished & (game.length < C) & (tokens_left > 0)
    affordable = (tokens_left >= most_nodes + 1 + reserve) & (searches < config.max_searches)
    waiting = alive & fork & affordable
    return token, alive & ~waiting, waiting

  def token_noise(length: jax.Array, purpose: int) -> jax.Array:
    """[B, V] Gumbel noise, a function of the row's key and how far it has come."""
    row_keys = jax.vmap(jax.random.fold_in)(keys, 2 * length + purpose)
    return jax.vmap(lambda key: jax.random.gumbel(key, (vocab_size,)))(row_keys)

  def step(state: _State) -> _State:
    game = game_lib.advance(model, layers, state.game, state.token, state.moving, verifier)
    ended = state.token == end_id
    if verify_inside:
      ended |= verifier.lost(game.judge)
    finished = state.finished | (state.moving & ended)
    tokens_left = state.tokens_left - state.moving
    token, moving, waiting = decide(game, state.moving, finished, tokens_left, state.searches)
    return state.replace(
      game=game,
      token=token,
      moving=moving,
      waiting=state.waiting | waiting,
      finished=finished,
      tokens_left=tokens_left,
      past=state.past and reuse.follow(state.past, state.token, state.moving),
      positions=state.positions + 1,
    )

  def think(game: Game, past: reuse.Past | None) -> mcts.SearchOutput:
    gumbel = token_noise(game.length, 1) * noise[:, None]
    network = TreeCache(model, layers, game)
    return mcts.search(
      game,
      network,
      config.tree,
      gumbel,
      rules,
      game.judge,
      weights,
      delimiters,
      stop_when_found,
      past=past,
    )

  def turn(state: _State) -> _State:
    state = jax.lax.while_loop(lambda s: jnp.any(s.moving), step, state)
    return jax.lax.cond(jnp.any(state.waiting), search_forks, lambda s: s, state)

  def search_forks(state: _State) -> _State:
    out = think(state.game, state.past)
    waiting = state.waiting
    new = waiting & out.found.found & ~state.found.found
    found = jax.tree.map(lambda a, b: jnp.where(_expand(new, a), a, b), out.found, state.found)
    stopped = found.found if stop_when_found else jnp.zeros(B, bool)
    return state.replace(
      game=state.game.replace(cache=out.state),
      token=out.token,
      moving=waiting & ~stopped,
      waiting=jnp.zeros(B, bool),
      tokens_left=state.tokens_left - out.nodes * waiting,
      searches=state.searches + waiting,
      found=found,
      moves=_record(state.moves, state.game.length, waiting & ~stopped, out),
      trees=jax.tree.map(
        lambda new, old: jnp.where(state.turn == 0, new[:keep_trees], old), out.tree, state.trees
      ),
      past=state.past and reuse.Past(tree=out.tree, node=jnp.zeros(B, jnp.int32)),
      turn=state.turn + 1,
      positions=state.positions + out.positions,
    )

  game = game_lib.start(model, layers, prompts, prompt_length, judge, C, tree_slots=slots)
  nobody = jnp.zeros(B, bool)
  searches = jnp.zeros(B, jnp.int32)
  token, moving, waiting = decide(game, prompt_length > 0, nobody, budget, searches)
  nothing = jnp.zeros((B, A))
  root = tree_lib.plant(slots + 1, C, nothing.astype(jnp.int32), nothing, game.value, game.judge)
  state = _State(
    game=game,
    token=token,
    moving=moving,
    waiting=waiting,
    finished=nobody,
    tokens_left=budget,
    searches=searches,
    found=mcts.Found(found=nobody, completion=game.completion, length=game.length),
    moves=Moves(
      searched=jnp.zeros((B, C), bool),
      candidates=jnp.full((B, C, A), -1, jnp.int32),
      weights=jnp.zeros((B, C, A + 1)),
      root_values=jnp.zeros((B, C)),
      visit_counts=jnp.zeros((B, C, A), jnp.int32),
    ),
    trees=jax.tree.map(lambda x: jnp.zeros_like(x[:keep_trees]), root),
    past=reuse.Past(tree=root, node=searches + tree_lib.NO_NODE) if config.tree.reuse else None,
    turn=jnp.int32(0),
    positions=jnp.int32(0),
  )
  state = jax.lax.while_loop(lambda s: jnp.any(s.moving | s.waiting), turn, state)
  return Played(
    completion=state.game.completion,
    length=state.game.length,
    finished=state.finished,
    right=verifier.right(state.game.judge),
    values=state.game.values,
    found=state.found,
    moves=state.moves,
    trees=state.trees,
    forward_tokens=budget - state.tokens_left,
    positions=jnp.broadcast_to(state.positions, (B,)),
  )


def decode(
  model: Model,
  layers: list[Block],
  game: Game,
  moving: jax.Array,
  keys: jax.Array,
  temperature: jax.Array,
  verify_inside: jax.Array,
  end_id: int,
  verifier: DeviceVerifier,
) -> tuple[Game, jax.Array, jax.Array]:
  """Plain decoding, greedy at temperature 0, to the end of every row that is moving [B] bool.

  Args:
    verify_inside: scalar bool, whether a row ends where the verifier knows that it is lost.

  Returns:
    the finished games, finished [B] bool, and the scalar number of positions that each row went
    through.
  """
  max_tokens = game.completion.shape[1]

  def choose(game: Game) -> jax.Array:
    step_keys = jax.vmap(jax.random.fold_in)(keys, game.length)
    gumbel = jax.vmap(lambda key: jax.random.gumbel(key, (model.vocab_size,)))(step_keys)
    return jnp.argmax(game.logits + temperature * gumbel, axis=-1)

  def step(carry):
    game, moving, finished, steps = carry
    token = choose(game)
    game = game_lib.advance(model, layers, game, token, moving, verifier)
    ended = (token == end_id) | (verify_inside & verifier.lost(game.judge))
    finished = finished | (moving & ended)
    return game, moving & ~finished & (game.length < max_tokens), finished, steps + 1

  carry = (game, moving, jnp.zeros_like(moving), jnp.int32(0))
  game, _, finished, steps = jax.lax.while_loop(lambda c: jnp.any(c[1]), step, carry)
  return game, finished, steps


def _expand(mask: jax.Array, like: jax.Array) -> jax.Array:
  return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


def _record(moves: Moves, at: jax.Array, rows: jax.Array, out: mcts.SearchOutput) -> Moves:
  """Writes the searched move of each row at its index at [B]."""
  C = moves.searched.shape[1]
  here = rows[:, None] & (jnp.arange(C) == at[:, None])
  return Moves(
    searched=moves.searched | here,
    candidates=jnp.where(here[..., None], out.candidates[:, None], moves.candidates),
    weights=jnp.where(here[..., None], out.weights[:, None], moves.weights),
    root_values=jnp.where(here, out.root_value[:, None], moves.root_values),
    visit_counts=jnp.where(here[..., None], out.visit_counts[:, None], moves.visit_counts),
  )
