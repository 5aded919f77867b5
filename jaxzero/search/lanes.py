"""Step-level searches: L lanes a problem, each a line of thought in a KV cache row of its own.

A round takes every open lane to its next step end, scores the steps by the model's value, keeps the
best and lets them spawn into the lanes of the others. Lanes come in groups that are kept apart:

- beam: one group; of L lanes the best L / M stay (Snell et al. 2024, section 5.2).
- dvts: groups of M lanes, the best of each stays (Beeching, Tunstall, Rush 2024, "Scaling test-time
  compute with open models").
- lookahead: a beam whose steps are scored by the text k steps further, rolled forward greedily and
  thrown away (Snell et al. 2024, section 5.2).

A lane that has ended stays where it is, out of the beam. Cache rows are copied at step ends only.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from jaxzero.models.scored import Model
from jaxzero.models.transformer import Block
from jaxzero.search import game as game_lib
from jaxzero.search.game import Game
from jaxzero.tasks.base import DeviceVerifier


@chex.dataclass(frozen=True)
class Lines:
  """What became of B problems in L lanes; C the longest completion."""

  completion: jax.Array  # [B, L, C] int32
  length: jax.Array  # [B, L] int32
  finished: jax.Array  # [B, L] bool: it has ended by the end token
  right: jax.Array  # [B, L] bool: the verdict on it
  values: jax.Array  # [B, L, C] float32: P(right) behind each of its tokens
  forward_tokens: jax.Array  # [B] int32, rolled and dropped tokens too
  positions: jax.Array  # [B] int32: positions put through the model for all lanes, idle ones too


@chex.dataclass(frozen=True)
class _State:
  game: Game  # rows: problem x lane
  stream: jax.Array  # [B, L] int32: the round after which this row was copied over, 0: never
  room: jax.Array  # [B, L] int32: tokens that the lane may still use; 0: it is closed
  left: jax.Array  # [B] int32: forward tokens
  round: jax.Array  # scalar int32
  positions: jax.Array  # scalar int32


def grow(
  model: Model,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  judge: jax.Array,
  keys: jax.Array,
  budget: jax.Array,
  count: jax.Array,
  temperature: jax.Array,
  expansion: jax.Array,
  steps_ahead: jax.Array,
  verify_inside: jax.Array,
  rows: int,
  group: int,
  max_tokens: int,
  end_id: int,
  delimiters: tuple[int, ...],
  verifier: DeviceVerifier,
) -> Lines:
  """One search in lanes a problem; pure, to be called inside jit (and inside `shard_map`).

  Args:
    prompts: [B, P] int32, padded on the right; prompt_length: [B] int32, 0 for an empty row.
    judge: [B, S] int32, the verifier's first state of each problem.
    keys: [B] typed PRNG keys, consumed. A lane that never was copied over samples as `play.decode`
      does with `fold_in(key, lane)`.
    budget: [B] int32 forward tokens after the prompt; a cap. A lane goes into a step only if the
      longest completion fits with those of the lanes before it; the first lane always may.
    count: [B] int32, lanes used out of `rows`.
    temperature: scalar; 0 takes the likeliest token.
    expansion: scalar; one in so many open lanes of a group stays at a step's end, at least one.
    steps_ahead: scalar; 0, or how many steps a lane is rolled forward to be scored; it is scored as
      it is where what is left does not pay for rolling all lanes and finishing them.
    verify_inside: scalar bool: a problem ends with its first right completion, and lost lanes are
      dropped.
    rows: L, the lanes that there is room for.
    group: lanes that are compared with each other; divides `rows`.
    delimiters: tokens that end a step; the end token does, too.
  """
  B, L, C = len(prompts), rows, max_tokens
  lane_keys = jax.vmap(lambda i: jax.vmap(jax.random.fold_in, (0, None))(keys, i), 0, 1)
  row_keys = lane_keys(jnp.arange(L)).reshape(B * L)

  def by_lane(x: jax.Array) -> jax.Array:
    return x.reshape(B, L, *x.shape[1:])

  def last_token(game: Game) -> jax.Array:
    at = jnp.maximum(game.length - 1, 0)[:, None]
    return by_lane(jnp.take_along_axis(game.completion, at, axis=1)[:, 0])

  def at_step_end(token: jax.Array) -> jax.Array:
    return jnp.isin(token, jnp.asarray(delimiters))

  def won(game: Game) -> jax.Array:
    return verify_inside & by_lane(verifier.right(game.judge))

  def lost(game: Game) -> jax.Array:
    return verify_inside & by_lane(verifier.lost(game.judge))

  def unsolved(game: Game) -> jax.Array:
    return ~jnp.any(won(game), axis=1, keepdims=True)

  def walk(
    state: _State, room: jax.Array, temperature: jax.Array | float, steps: jax.Array | int
  ) -> _State:
    """Decodes to the `steps`th step end from here, within room [B, L]; pays for it."""

    def token_step(carry):
      game, used, ends, moving, positions = carry
      number = state.stream.reshape(-1) * C + game.length
      noise = jax.vmap(
        lambda key, n: jax.random.gumbel(jax.random.fold_in(key, n), (model.vocab_size,))
      )(row_keys, number)
      token = jnp.argmax(game.logits + temperature * noise, axis=-1)
      game = game_lib.advance(model, layers, game, token, moving.reshape(-1), verifier)
      token = by_lane(token)
      ends = ends + jnp.where((token == end_id) | lost(game), steps, at_step_end(token))
      used = used + moving
      moving = moving & (used < room) & (ends < steps) & unsolved(game)
      return game, used, ends, moving, positions + 1

    nothing = jnp.zeros((B, L), jnp.int32)
    moving = (room > 0) & unsolved(state.game)
    carry = (state.game, nothing, nothing, moving, state.positions)
    game, used, _, _, positions = jax.lax.while_loop(lambda c: jnp.any(c[3]), token_step, carry)
    return state.replace(game=game, left=state.left - jnp.sum(used, axis=1), positions=positions)

  def roll(state: _State, live: jax.Array) -> tuple[_State, jax.Array]:
    """The scores [B, L] of live lanes some steps further; what is rolled is forgotten again."""
    game = state.game
    need = jnp.where(live, C - by_lane(game.length), 0)
    paid = 2 * jnp.sum(need, axis=1, keepdims=True) <= state.left[:, None]
    rolled = walk(state, jnp.where(paid & (steps_ahead > 0), need, 0), 0.0, steps_ahead)
    stays = (won(rolled.game) & live).reshape(-1)  # a right end that was found on the way
    # The cache keeps what was rolled: a row sees no slot behind its own position.
    kept = jax.tree.map(
      lambda new, old: jnp.where(stays.reshape(-1, *[1] * (new.ndim - 1)), new, old),
      rolled.game.replace(cache=()),
      game.replace(cache=()),
    )
    score = by_lane(rolled.game.value)
    return rolled.replace(game=kept.replace(cache=rolled.game.cache)), score

  def one_round(state: _State) -> _State:
    opened = state.room > 0
    state = walk(state, state.room, temperature, 1).replace(round=state.round + 1)
    game, token = state.game, last_token(state.game)
    free = opened & ((token != end_id) | lost(game))
    live = free & at_step_end(token) & (by_lane(game.length) < C) & ~lost(game)
    state, score = roll(state, live)
    free, live = free & unsolved(state.game), live & unsolved(state.game)
    groups = [x.reshape(B, -1, group) for x in (score, live, free)]
    source, rank = spawn(*groups, expansion)
    number = jnp.arange(L // group)[:, None]
    # The groups' best lanes come first, then their second best ones.
    rank = (rank * len(number) + number).reshape(B, L)
    return copy(state, (source + group * number).reshape(B, L), rank)

  def copy(state: _State, source: jax.Array, rank: jax.Array) -> _State:
    """Lanes become their sources [B, L]; those of the lowest ranks that can be paid for go on."""
    row = (source + L * jnp.arange(B)[:, None]).reshape(-1)
    game = jax.tree.map(lambda x: x[row], state.game)
    return state.replace(
      game=game,
      stream=jnp.where(source != jnp.arange(L), state.round, state.stream),
      room=afford(C - by_lane(game.length), rank, rank < L, state.left),
    )

  game = game_lib.start(model, layers, prompts, prompt_length, judge, C)
  game = jax.tree.map(lambda x: jnp.repeat(x, L, axis=0), game)
  lane = jnp.broadcast_to(jnp.arange(L), (B, L))
  used = (lane < count[:, None]) & (prompt_length > 0)[:, None]
  state = _State(
    game=game,
    stream=jnp.zeros((B, L), jnp.int32),
    room=afford(jnp.full((B, L), C), lane, used, budget),
    left=budget,
    round=jnp.int32(0),
    positions=jnp.int32(0),
  )
  state = jax.lax.while_loop(lambda s: jnp.any(s.room > 0), one_round, state)
  game = state.game
  length = by_lane(game.length)
  return Lines(
    completion=by_lane(game.completion),
    length=length,
    finished=(length > 0) & (last_token(game) == end_id),
    right=by_lane(verifier.right(game.judge)),
    values=by_lane(game.values),
    forward_tokens=budget - state.left,
    positions=jnp.broadcast_to(L * state.positions, (B,)),
  )


def spawn(
  score: jax.Array, live: jax.Array, free: jax.Array, expansion: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
  """Who stays at a step's end, and who takes the lanes of those that do not.

  Of every group's free lanes one in `expansion` stays, at least one and the best first; equal ones
  by their number. The other free lanes are dealt to those that stay in turn.

  Args:
    score: [B, G, W] float32.
    live: [B, G, W] bool, lanes at a step's end that may go on.
    free: [B, G, W] bool, lanes to go on in; all live ones are.

  Returns:
    source [B, G, W] int32, the lane of the group that each lane becomes; and rank [B, G, W] int32,
    their order: those that stay, by score, then the spawned. A lane that is not free, or whose
    group has nothing live, stays what it is at a rank of W.
  """
  W = score.shape[-1]
  by_score = jnp.argsort(jnp.where(live, -score, jnp.inf), axis=-1, stable=True)
  place = jnp.argsort(by_score, axis=-1)
  kept = jnp.clip(jnp.sum(free, axis=-1) // expansion, 1, jnp.sum(live, axis=-1))[..., None]
  stays = live & (place < kept)
  taken = free & ~stays & (kept > 0)
  number = jnp.cumsum(taken, axis=-1) - 1
  parent = jnp.take_along_axis(by_score, number % jnp.maximum(kept, 1), axis=-1)
  source = jnp.where(taken, parent, jnp.arange(W))
  rank = jnp.where(stays, place, jnp.where(taken, kept + number, W))
  return source, rank


def afford(need: jax.Array, rank: jax.Array, wanted: jax.Array, left: jax.Array) -> jax.Array:
  """How many tokens each lane may use: all that it may need, or none.

  The first lane may use what is left even where it could need more.

  Args:
    need: [B, L] int32, at least 1; rank: [B, L] int32; wanted: [B, L] bool, who goes on.
    left: [B] int32.

  Returns:
    [B, L] int32, whose sum is at most `left`.
  """
  need = jnp.where(wanted, need, 0)
  order = jnp.argsort(jnp.where(wanted, rank, 2**30), axis=-1, stable=True)
  total = jnp.cumsum(jnp.take_along_axis(need, order, axis=-1), axis=-1)
  total = jnp.take_along_axis(total, jnp.argsort(order, axis=-1), axis=-1)
  first = wanted & (total == need)
  fits = total <= left[:, None]
  return jnp.where(fits, need, jnp.where(first, left[:, None], 0))
