"""The teacher's targets against Bayes' rule done by hand, a prefix at a time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trees import tree_arrays

from jaxzero.learn.teacher import Teacher, Verified, target
from jaxzero.models.transformer import bind, init_params
from jaxzero.search.engine import Engine
from jaxzero.search.record import Record, masses
from jaxzero.tasks.transcript import encode_completion, encode_prompt, grade

pytestmark = pytest.mark.usefixtures("quick_compiles")
A, PROMPT, COMPLETION = 5, 16, 30


@pytest.fixture(scope="module")
def model(tiny_model):
  return dataclasses.replace(tiny_model, num_layers=1)


@pytest.fixture(scope="module")
def params(model, tokenizer):
  params = init_params(model, tokenizer.vocab_size, jax.random.key(0))
  random = np.random.default_rng(0)
  params["value"] = random.normal(size=params["value"].shape).astype(np.float32)
  params["unembed"] *= 3.0  # a policy with an opinion
  return jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def completions(task, tokenizer):
  """Worked examples in trees that also hold a lost end beside each of them."""
  made = []
  for problem in task.problems("train", 0, 3):
    tokens = np.array(encode_completion(tokenizer, task.worked_example(problem)), np.int32)
    lost = np.array([*tokens[:2], tokenizer.end_id], np.int32)
    arrays = tree_arrays(tokens, lost, right=[tokens])
    random = np.random.default_rng(len(tokens))
    arrays["tree_prior"] = np.log(random.uniform(0.2, 0.5, len(arrays["tree_prior"]))).astype("f4")
    arrays["tree_verdict"][-1] = 0
    tree = Record(*(arrays[f"tree_{name}"] for name in Record._fields))
    prompt = np.array(encode_prompt(tokenizer, problem), np.int32)
    made.append(Verified(problem, prompt, tokens, tree, list(range(1, len(tokens) + 1))))
  return made


@pytest.fixture(scope="module")
def teacher(model, tokenizer, task, mesh1, params):
  return Teacher(Engine(model, tokenizer, task, mesh1, PROMPT, COMPLETION), params, A)


@pytest.fixture(scope="module")
def opinions(teacher, completions):
  return teacher.opinions(completions, 4)


@pytest.fixture(scope="module")
def reads(model, tokenizer, params):
  """(log-probabilities [V], P(right)) of a model that reads a whole prefix, without a cache."""

  @jax.jit
  def read(tokens, last):
    T = len(tokens)
    mask = jnp.tril(jnp.ones((1, T, T), bool))
    said = bind(model, tokenizer.vocab_size, params)(tokens[None], jnp.arange(T)[None], mask)
    return jax.nn.log_softmax(said.logits[0, last]), jax.nn.sigmoid(said.value_logits[0, last])

  def prefix(tokens):
    padded = np.zeros(PROMPT + COMPLETION + 1, np.int32)
    padded[: len(tokens)] = tokens
    return jax.device_get(read(padded, len(tokens) - 1))

  return prefix


def test_the_teacher_says_what_it_says_of_each_prefix_alone(
  opinions, completions, reads, tokenizer, task
):
  decided = 0
  for row, one in enumerate(completions[:2]):
    for j in range(len(one.tokens)):
      prefix = [*one.prompt, *one.tokens[:j]]
      log_p, value = reads(prefix)
      candidates = opinions.candidates[row, j]
      assert candidates[0] == one.tokens[j] and len(set(candidates.tolist())) == A
      others = np.setdiff1d(np.argsort(-log_p)[:A], candidates[:1])[: A - 1]
      assert set(candidates[1:]) >= set(others) - {np.argsort(-log_p)[A - 1]}
      np.testing.assert_allclose(opinions.log_pi[row, j], log_p[candidates], atol=1e-4)
      np.testing.assert_allclose(opinions.state_values[row, j], value, atol=1e-5)
      for token, said in zip(candidates, opinions.values[row, j], strict=True):
        right = grade(task, tokenizer, one.problem, [*one.tokens[:j], token]).right
        if right or token == tokenizer.end_id:
          assert said == right
        elif said == 0.0:
          decided += 1
        else:
          np.testing.assert_allclose(said, reads([*prefix, token])[1], atol=1e-5)
  assert decided > A, "the verifier knows some of them to be lost"


def test_targets_are_bayes_rule_on_the_tree(teacher, opinions, completions):
  for one, given in zip(completions, teacher.targets(completions), strict=True):
    row = next(i for i, other in enumerate(completions) if other is one)
    pi, q = np.exp(opinions.log_pi[row]), opinions.values[row]
    right, wrong = masses(one.tree)
    lost = len(one.tree.parent) - 1
    value = 1.0
    for j in reversed(range(len(one.tokens))):
      joint = pi[j] * q[j]
      joint[0] = pi[j, 0] * value
      for a, token in enumerate(opinions.candidates[row, j]):
        if j == 2 and token == one.tree.token[lost]:
          joint[a] = 0.0
          assert right[lost] == 0 and wrong[lost] == 1
      rest = (1 - pi[j].sum()) * opinions.state_values[row, j]
      value = joint.sum() + rest
      np.testing.assert_allclose(given.weights[j], [*(joint / value), rest / value], atol=1e-5)
    np.testing.assert_array_equal(given.candidates[:, 0], one.tokens)
    np.testing.assert_allclose(given.weights.sum(axis=1), 1.0, atol=1e-5)
    assert (given.weights >= 0).all() and given.weights[-1, 0] > 0


def test_what_the_search_found_out_moves_mass(opinions, completions):
  """A candidate whose mass all ended wrong loses its target, one that ended right gains."""
  one = completions[0]
  opinion = type(opinions)(*(x[0] for x in opinions))
  a = next(a for a in range(1, A) if 0 < opinion.values[0, a] < 1)
  token = int(opinion.candidates[0, a])
  weights = {}
  for verdict in (-1, 0, 1):
    tree = one.tree._replace(
      parent=np.append(one.tree.parent, np.int32(0)),
      token=np.append(one.tree.token, np.int32(token)),
      prior=np.append(one.tree.prior, np.float32(-1.0)),
      verdict=np.append(one.tree.verdict, np.int8(verdict)),
    )
    weights[verdict] = target(dataclasses.replace(one, tree=tree), opinion).weights[0, a]
  assert weights[0] == 0 < weights[-1] < weights[1]


def test_known_mass_is_what_enumeration_says():
  tree = Record(
    parent=np.array([-1, 0, 0, 1, 1]),
    token=np.array([0, 7, 8, 7, 8]),
    prior=np.log(np.array([1.0, 0.5, 0.3, 0.6, 0.2], np.float32)),
    visits=np.ones(5, np.int32),
    value=np.zeros(5, np.float32),
    verdict=np.array([-1, -1, 0, 1, 0]),
  )
  right, wrong = masses(tree)
  np.testing.assert_allclose(right, [0.3, 0.6, 0, 1, 0], atol=1e-6)
  np.testing.assert_allclose(wrong, [0.3 + 0.1, 0.2, 1, 0, 1], atol=1e-6)
