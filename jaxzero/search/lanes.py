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

import dataclasses

import chex
import jax
import jax.numpy as jnp

from jaxzero.errors import UserError
from jaxzero.models.transformer import Block, PolicyValueTransformer
from jaxzero.search import game as game_lib
from jaxzero.search.game import Game
from jaxzero.tasks.base import DeviceVerifier

LANES = ("beam", "dvts", "lookahead")


@dataclasses.dataclass(frozen=True)
class Lanes:
  """How wide a step-level search is."""

  width: int = 64
  """Most lanes a problem; a budget that does not pay for so many whole completions has fewer."""
  expansion: int = 4
  """M: one lane in so many stays at a step's end, and spawns so many."""
  steps_ahead: int = 1
  """`lookahead`: how many steps a lane is rolled forward before it is scored."""

  def check(self) -> None:
    """Raises UserError for lanes that cannot run."""
    if not 1 <= self.width <= 1024:
      raise UserError(f"lanes.width={self.width} must lie in 1..1024.")
    if self.expansion < 1 or self.steps_ahead < 1:
      raise UserError(
        f"lanes.expansion={self.expansion} and lanes.steps_ahead={self.steps_ahead} must be at "
        "least 1."
      )

  def ahead(self, strategy: str) -> int:
    return self.steps_ahead if strategy == "lookahead" else 0

  def count(self, strategy: str, budget: int, longest: int) -> int:
    """The most lanes whose whole completions, rolled steps included, fit into a budget.

    A multiple of the expansion where there are more lanes than that; at least one.
    """
    count = min(self.width, budget // (longest * (1 + self.ahead(strategy))))
    return max(1, count - count % self.expansion if count > self.expansion else count)

  def rows(self, count: int) -> int:
    """Cache rows a problem for so many lanes: few sizes, so that budgets share programs."""
    rows = 1 if count == 1 else self.expansion
    while rows < count:
      rows *= 2
    return rows

  def group(self, strategy: str, rows: int) -> int:
    """Lanes of one group."""
    return min(self.expansion, rows) if strategy == "dvts" else rows


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
  values: jax.Array  # [B * L, C] float32
  stream: jax.Array  # [B, L] int32: the round after which this row was copied over, 0: never
  room: jax.Array  # [B, L] int32: tokens that the lane may still use; 0: it is closed
  left: jax.Array  # [B] int32: forward tokens
  round: jax.Array  # scalar int32
  positions: jax.Array  # scalar int32


def grow(
  model: PolicyValueTransformer,
  layers: list[Block],
  prompts: jax.Array,
  prompt_length: jax.Array,
  judge: jax.Array,
  keys: jax.Array,
  budget: jax.Array,
  count: jax.Array,
  temperature: jax.Array,
  rows: int,
  group: int,
  expansion: int,
  steps_ahead: int,
  max_tokens: int,
  end_id: int,
  delimiters: tuple[int, ...],
  verifier: DeviceVerifier,
  verify_inside: bool,
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
    group: lanes that are compared with each other; divides `rows`.
    expansion: one in so many open lanes of a group stays at a step's end, at least one.
    steps_ahead: 0, or how many steps a lane is rolled forward to be scored; it is scored as it is
      where what is left does not pay for rolling all lanes and finishing them.
    delimiters: tokens that end a step; the end token does, too.
    verify_inside: a problem ends with its first right completion, and lost lanes are dropped.
  """
  B, L, C = len(prompts), rows, max_tokens
  lane_keys = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(L)))(
    keys
  ).reshape(B * L)
  by_lane = lambda x: x.reshape(B, L, *x.shape[1:])  # noqa: E731

  def last_token(game: Game) -> jax.Array:
    at = jnp.maximum(game.length - 1, 0)[:, None]
    return by_lane(jnp.take_along_axis(game.completion, at, axis=1)[:, 0])

  def won(game: Game) -> jax.Array:
    return by_lane(verifier.right(game.judge)) if verify_inside else jnp.zeros((B, L), bool)

  def walk(game, values, stream, room, temperature, steps: int):
    """Decodes to the `steps`th step end from here, within room [B, L].

    Returns games, values, tokens used [B, L] and how many positions every row went through.
    """

    def open_rows(game, used, ends):
      moving = (used < room) & (ends < steps)
      return moving & ~jnp.any(won(game), axis=1, keepdims=True)

    def token_step(carry):
      game, values, used, ends, moving, positions = carry
      numbers = stream.reshape(-1) * C + game.length
      noise = jax.vmap(
        lambda key, n: jax.random.gumbel(jax.random.fold_in(key, n), (model.vocab_size,))
      )(lane_keys, numbers)
      token = jnp.argmax(game.logits + temperature * noise, axis=-1)
      here = moving.reshape(-1)
      new = game_lib.advance(model, layers, game, token, here, verifier)
      written = (jnp.arange(C) == game.length[:, None]) & here[:, None]
      values = jnp.where(written, new.value[:, None], values)
      token = by_lane(token)
      over = token == end_id
      if verify_inside:
        over |= by_lane(verifier.lost(new.judge))
      at_end = jnp.isin(token, jnp.asarray(delimiters))
      ends = jnp.where(moving, jnp.where(over, steps, ends + at_end), ends)
      used = used + moving
      return new, values, used, ends, open_rows(new, used, ends), positions + 1

    nothing = jnp.zeros((B, L), jnp.int32)
    carry = (game, values, nothing, nothing, open_rows(game, nothing, nothing), jnp.int32(0))
    game, values, used, _, _, positions = jax.lax.while_loop(
      lambda c: jnp.any(c[4]), token_step, carry
    )
    return game, values, used, positions

  def roll(state: _State, live: jax.Array) -> tuple[_State, jax.Array]:
    """The scores [B, L] of live lanes some steps further; their rolled tokens are forgotten."""
    game = state.game
    need = jnp.where(live, C - by_lane(game.length), 0)
    affordable = 2 * jnp.sum(need, axis=1, keepdims=True) <= state.left[:, None]
    rolled, values, used, positions = walk(
      game, state.values, state.stream, jnp.where(affordable, need, 0), 0.0, steps_ahead
    )
    # The cache may keep what was rolled: a row sees no slot behind its own position.
    kept = (won(rolled) & live).reshape(-1)
    pick = lambda new, old: jnp.where(expand(kept, new), new, old)  # noqa: E731
    back = jax.tree.map(pick, rolled.replace(cache=()), game.replace(cache=()))
    state = state.replace(
      game=back.replace(cache=rolled.cache),
      values=pick(values, state.values),
      left=state.left - jnp.sum(used, axis=1),
      positions=state.positions + positions,
    )
    return state, by_lane(rolled.value)

  def one_round(state: _State) -> _State:
    opened = state.room > 0
    game, values, used, positions = walk(
      state.game, state.values, state.stream, state.room, temperature, 1
    )
    state = state.replace(
      game=game,
      values=values,
      left=state.left - jnp.sum(used, axis=1),
      round=state.round + 1,
      positions=state.positions + positions,
    )
    token, length = last_token(game), by_lane(game.length)
    ended = token == end_id
    live = opened & jnp.isin(token, jnp.asarray(delimiters)) & (length < C)
    free = opened & ~ended
    if verify_inside:
      live &= ~by_lane(verifier.lost(game.judge))
      free = opened & ~won(game)
    score = by_lane(game.value)
    if steps_ahead:
      state, score = roll(state, live)
    open_problem = ~jnp.any(won(state.game), axis=1, keepdims=True)
    live, free = live & open_problem, free & open_problem
    in_groups = lambda x: x.reshape(B, -1, group)  # noqa: E731
    source, rank = spawn(*map(in_groups, (score, live, free)), expansion)
    source = (source + group * jnp.arange(L // group)[:, None]).reshape(B, L)
    # The groups' best lanes come first, then their second best ones.
    rank = rank * (L // group) + jnp.arange(L // group)[:, None]
    return copy(state, source, rank.reshape(B, L))

  def copy(state: _State, source: jax.Array, rank: jax.Array) -> _State:
    """Rows [B, L] become their sources; those of the lowest ranks that can be paid for go on."""
    row = (source + L * jnp.arange(B)[:, None]).reshape(-1)
    game, values = jax.tree.map(lambda x: x[row], (state.game, state.values))
    moved = source != jnp.arange(L)
    need = C - by_lane(game.length)
    return state.replace(
      game=game,
      values=values,
      stream=jnp.where(moved, state.round, state.stream),
      room=afford(need, rank, rank < L, state.left),
    )

  game = game_lib.start(model, layers, prompts, prompt_length, judge, C)
  game = jax.tree.map(lambda x: jnp.repeat(x, L, axis=0), game)
  lane = jnp.broadcast_to(jnp.arange(L), (B, L))
  used = (lane < count[:, None]) & (prompt_length > 0)[:, None]
  state = _State(
    game=game,
    values=jnp.zeros((B * L, C)),
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
    values=by_lane(state.values),
    forward_tokens=budget - state.left,
    positions=jnp.broadcast_to(L * state.positions, (B,)),
  )


def spawn(
  score: jax.Array, live: jax.Array, free: jax.Array, expansion: int
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
    their order: those that stay, by score, then the spawned. A lane that is not free, or whose group
    has nothing live, stays what it is at a rank of W.
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


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
  return mask.reshape(mask.shape + (1,) * (like.ndim - 1))
