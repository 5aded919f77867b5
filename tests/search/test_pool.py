"""One tree a problem through few rows: nobody is lost, and nobody depends on the company."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from programs import Program

from jaxzero.parallel.rows import HostRows
from jaxzero.parallel.sharding import shard_batch
from jaxzero.search import think as think_lib
from jaxzero.search.choose import end_tokens
from jaxzero.search.config import TreeConfig
from jaxzero.search.engine import make_weights
from jaxzero.search.one_tree import completions
from jaxzero.search.pool import think
from jaxzero.search.record import to_dict, trim
from jaxzero.tasks.transcript import encode_completion, grade

COUNT, LIMIT = 19, 40
CONFIG = TreeConfig(
  order="guided", num_simulations=LIMIT, num_candidates=4, failure_weight=0.5, value_weight=0.3
)


@pytest.fixture(scope="module")
def many(task):
  """Some learned by heart, most never seen."""
  return [*task.problems("train", 0, 4), *task.problems("test", 0, COUNT - 4)]


@pytest.fixture(scope="module")
def pool(engine1, params, many):
  def run(engine=engine1, params=params, order=range(COUNT), **options):
    keys = jax.random.split(jax.random.key(0), COUNT)[np.array(order)]
    problems = [many[i] for i in order]
    options = {"batch_size": 8, "verify_inside": True, "limit": LIMIT, **options}
    return think(engine, params, problems, keys, config=CONFIG, noise=1.0, **options)

  return run


@pytest.fixture(scope="module")
def whole(pool):
  return pool(keep_trees=3)


def assert_same(a, b, order=range(COUNT)):
  """Insights of the same problems; b's are in the given order."""
  order = np.array(order)
  for (path, x), y in zip(jax.tree.leaves_with_path(a), jax.tree.leaves(b), strict=True):
    if path[0].name == "number":
      continue
    if x.dtype == np.float32:
      np.testing.assert_allclose(x[order], y, atol=1e-5, err_msg=str(path))
    else:
      np.testing.assert_array_equal(x[order], y, err_msg=str(path))


def test_every_problem_comes_back_once_and_in_its_place(whole, engine1, tokenizer, many):
  out = whole.insight
  np.testing.assert_array_equal(out.number, np.arange(COUNT))
  for i, problem in enumerate(many):
    for completion, right in ((out.played, out.played_right), (out.answer, out.answer_right)):
      tokens = completion.completion[i, : completion.length[i]].tolist()
      if completion.found[i]:
        assert right[i] == grade(engine1.task, tokenizer, problem, tokens).right
      else:
        assert not right[i]
  np.testing.assert_array_equal(out.answer.found, out.answer_right)
  assert out.answer_right.any() and not out.answer_right.all()
  assert len(whole.trees) == 3
  for i, tree in enumerate(whole.trees):
    assert (tree.parent >= 0).sum() == out.forward_tokens[i]


def test_a_tree_that_goes_on_begins_as_the_one_that_stops(whole, pool):
  on = pool(keep_trees=3, stop_when_found=False)
  assert (on.insight.forward_tokens >= whole.insight.forward_tokens).all()
  assert (on.insight.ends >= whole.insight.ends).all()
  assert (on.insight.ends > whole.insight.ends)[whole.insight.answer_right].any()
  np.testing.assert_array_equal(on.insight.answer_right, whole.insight.answer_right)
  for stopped, longer in zip(whole.trees, on.trees, strict=True):
    size = 1 + int((stopped.parent >= 0).sum())
    np.testing.assert_array_equal(stopped.token[:size], longer.token[:size])


def test_every_forward_token_is_counted_and_the_budget_is_a_cap(whole, pool, engine1):
  spent = whole.insight.forward_tokens
  assert (spent <= LIMIT).all() and (spent > 0).all()
  assert (spent == LIMIT)[~whole.insight.answer.found].all(), "what is not solved spends it all"
  assert (spent < LIMIT)[whole.insight.answer.found].any(), "what is solved stops"
  caps = np.arange(COUNT)
  low = pool(limit=caps)
  assert (low.insight.forward_tokens <= caps).all()
  np.testing.assert_array_equal(
    low.insight.forward_tokens, np.minimum(caps, whole.insight.forward_tokens)
  )
  for thinking in (whole, low):
    assert thinking.occupancy <= 1.0
    steps = round(thinking.insight.forward_tokens.sum() / thinking.occupancy)
    prompts, rest = divmod(thinking.positions - steps, engine1.max_prompt)
    assert rest == 0 and prompts >= COUNT, "empty rows' prompts count, too"
  assert whole.occupancy > 0.3


def test_a_row_alone_is_never_idle_and_finds_the_same(pool, whole):
  alone = pool(order=[7], batch_size=1)
  assert alone.occupancy == 1.0
  assert_same(whole.insight, alone.insight, [7])


def test_the_size_of_the_batch_changes_nothing(pool, whole):
  assert_same(whole.insight, pool(batch_size=100).insight)


def test_the_order_of_problems_changes_nothing(pool, whole):
  order = np.random.default_rng(0).permutation(COUNT)
  assert_same(whole.insight, pool(order=order).insight, order)


@pytest.fixture(scope="module")
def advance8(engine8, params8, many):
  """The compiled growth of 16 rows on eight devices."""
  thinker = engine8.thinker(CONFIG, True)
  batch = engine8.encode(many[:16], 16) | {
    "number": np.arange(16, dtype=np.int32),
    "keys": np.asarray(jax.random.key_data(jax.random.split(jax.random.key(0), 16))),
    "limit": np.full(16, LIMIT, np.int32),
    "noise": np.ones(16, np.float32),
  }
  weights = make_weights(CONFIG, 1.0)
  held = engine8.gather(params8)
  thoughts = thinker.start(held, shard_batch(engine8.mesh, batch), weights)
  return thinker.advance.lower(held, thoughts, weights, np.int32(1)).compile()


def test_eight_devices_think_as_one(pool, whole, engine8, params8):
  eight = pool(engine=engine8, params=params8, batch_size=16)
  assert_same(whole.insight, eight.insight)


def test_growing_neither_communicates_nor_copies_the_cache(advance8, engine8):
  model = engine8.model
  slots = engine8.max_prompt + engine8.max_tokens + LIMIT + 1
  program = Program(advance8.as_text())
  assert program.loops and program.collectives == []
  assert program.copies_in_loops((2, model.num_kv_heads, slots, model.head_dim)) == []


def test_an_answers_moves_carry_the_trees_advice(whole):
  out = whole.insight
  for i in np.flatnonzero(out.answer.found):
    length = out.answer.length[i]
    tokens, candidates = out.answer.completion[i, :length], out.candidates[i, :length]
    assert (candidates == tokens[:, None]).any(axis=1).all(), "each move was a candidate"
    np.testing.assert_allclose(out.weights[i, :length].sum(axis=1), 1.0, atol=1e-5)
    taken = np.argmax(candidates == tokens[:, None], axis=1)
    visits = out.visit_counts[i, np.arange(length), taken]
    assert (visits >= 1).all(), "the end was visited, and all above it"
    assert ((out.values[i, :length] > 0) & (out.values[i, :length] <= 1)).all()


def test_the_whole_completions_verdict_is_the_graders(engine1, tokenizer, task, problems):
  random = np.random.default_rng(0)
  marks = [tokenizer.end_think_id, tokenizer.step_id, tokenizer.think_id]
  alphabet = [*tokenizer.encode("0123456789+*()"), *marks, tokenizer.end_think_id]
  cases, C = [], 30
  for problem in problems:
    right = encode_completion(tokenizer, task.worked_example(problem))
    cases.append((problem, right))
    for _ in range(6):
      wrong = list(right)
      wrong[random.integers(len(wrong) - 1)] = alphabet[random.integers(len(alphabet))]
      cases.append((problem, wrong))
    noise = random.choice(alphabet, size=random.integers(0, C)).tolist()
    cases.append((problem, [*noise, tokenizer.end_id]))
  facts = np.stack([task.problem_array(problem) for problem, _ in cases])
  completion = np.zeros((len(cases), C), np.int32)
  for row, (_, tokens) in enumerate(cases):
    completion[row, : len(tokens)] = tokens
  length = np.array([len(tokens) for _, tokens in cases])
  verifier = task.device_verifier(tokenizer)
  judge = jax.jit(lambda f, c, n: think_lib.judge(verifier, engine1.judge(f), c, n))
  expected = [grade(task, tokenizer, problem, tokens).right for problem, tokens in cases]
  np.testing.assert_array_equal(judge(facts, completion, length), expected)
  assert 8 <= sum(expected) < len(cases)


def test_without_a_verdict_all_that_ended_is_there_to_choose_from(pool, engine1):
  thinking, seen = pool(verify_inside=False, keep_trees=COUNT), 0
  out, tokenizer = thinking.insight, engine1.tokenizer
  assert (out.forward_tokens == LIMIT).all(), "nobody says when to stop"
  assert not out.answer.found.any() and not out.sketch.right.any()
  for i, tree in enumerate(thinking.trees):
    assert out.ends[i] == tree.terminal.sum()
    ends = np.flatnonzero(tree.terminal & (tree.token == tokenizer.end_id))
    paths = [tree.path[end, : tree.depth[end]] for end in ends]
    paths = [path for path in paths if tokenizer.end_think_id in tree.token[path]]
    found = completions(engine1, out, i, inside=False)
    assert [one.tokens for one in found] == [tuple(tree.token[path]) for path in paths]
    for one, path in zip(found, paths, strict=True):
      steps = np.isin(tree.token[path], end_tokens(tokenizer))
      assert one.scores == tuple(tree.raw_value[path[steps]].tolist())
      assert one.spent == path[-1] and one.right is None
    seen += len(found)
  assert seen > COUNT / 2


@pytest.mark.parametrize("inside", [True, False])
def test_a_record_holds_every_live_node_and_nothing_else(pool, inside):
  whole, records = (pool(verify_inside=inside, keep_trees=COUNT, compact=c) for c in (False, True))
  assert_same(whole.insight, records.insight)
  ends = 0
  for i, (tree, record) in enumerate(zip(whole.trees, map(trim, records.trees), strict=True)):
    size = whole.insight.forward_tokens[i] + 1
    assert {len(x) for x in record} == {size}
    for name in ("parent", "token", "visits"):
      np.testing.assert_array_equal(getattr(record, name), getattr(tree, name)[:size])
    for node in range(1, size):
      parent, action = tree.parent[node], tree.action[node]
      assert record.prior[node] == tree.prior_logits[parent, action] <= 1e-6
      end = int(tree.right[node]) if inside else 2
      assert record.verdict[node] == (end if tree.terminal[node] else -1)
      if inside and tree.terminal[node]:
        assert record.value[node] == tree.right[node]
      ends += tree.terminal[node]
    assert record.parent[0] == record.verdict[0] == -1 and record.prior[0] == 0
  assert ends > COUNT


def test_what_a_host_sends_where_it_has_no_tree_is_like_those_that_it_has(pool, monkeypatch):
  """Hosts send equally many; the batch that one saw last may hold none of the trees asked for."""
  alike, gather = [], HostRows.gather

  def checked(hosts, own, like, first, count):
    shapes = jax.tree.map(lambda x: (x.shape, x.dtype), [like, *own.values()])
    alike.extend(one == shapes[0] for one in shapes[1:])
    return gather(hosts, own, like, first, count)

  monkeypatch.setattr(HostRows, "gather", checked)
  pool(keep_trees=1, compact=True)
  assert len(alike) == COUNT + 1 and all(alike)


def test_a_tree_on_paper_is_the_tree(whole, pool, tokenizer, many):
  records = pool(keep_trees=3, compact=True).trees
  for i, tree in enumerate(whole.trees):
    chosen = int(whole.insight.played.completion[i, 0])
    drawn = to_dict(trim(records[i]), tokenizer, many[i].prompt, chosen)
    nodes, made = drawn["nodes"], whole.insight.forward_tokens[i]
    assert drawn["num_simulations"] == len(nodes) - 1 == made
    assert [node["id"] for node in nodes] == list(range(made + 1))
    assert all(node["parent"] < node["id"] for node in nodes)
    assert nodes[drawn["chosen"]]["token"] == tokenizer.render([chosen])
    for node in nodes:
      assert node["right"] == (bool(tree.right[node["id"]]) if node["terminal"] else None)
      assert node["parent"] == tree.parent[node["id"]] and 0 <= node["prior"] <= 1
    assert any(node["right"] for node in nodes) == whole.insight.answer_right[i]
    json.dumps(drawn)


def test_weights_share_a_compiled_function(engine1):
  assert engine1.thinker(CONFIG, True) is engine1.thinker(
    dataclasses.replace(CONFIG, failure_weight=0.0), True
  )
  assert engine1.thinker(CONFIG, True) is not engine1.thinker(CONFIG, False)
