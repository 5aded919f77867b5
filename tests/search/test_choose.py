"""The choice among finished completions, beside a plain reading of its definition."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from votes import plain

from jaxzero.errors import UserError
from jaxzero.search.choose import AGGREGATES, VOTES, Choice, Finished, choose, finished
from jaxzero.tasks.base import Completion
from jaxzero.tasks.transcript import encode_completion

SCORE = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])  # sums and products of these are exact
LOG_P = st.sampled_from([None, *(-2 * k * math.log(2) for k in (0, 1, 2))])  # counts 1, 1/2, 1/4
ONE = st.tuples(st.sampled_from(["1+2", "1 + 2", "2+1", "3"]), st.lists(SCORE, min_size=1), LOG_P)


@settings(max_examples=200, deadline=None)
@given(
  candidates=st.lists(ONE, min_size=1, max_size=6),
  aggregate=st.sampled_from(sorted(AGGREGATES)),
  vote=st.sampled_from(VOTES),
)
def test_the_choice_is_the_definitions(candidates, aggregate, vote):
  made = [
    Finished((i,), answer, tuple(scores), i, log_p=log_p)
    for i, (answer, scores, log_p) in enumerate(candidates)
  ]
  chosen = choose(made, Choice(aggregate=aggregate, vote=vote))
  assert chosen.tokens == (plain(candidates, aggregate, vote),)


@pytest.mark.parametrize("vote", VOTES)
def test_what_the_verifier_was_heard_to_find_right_wins(vote):
  wrong = [Finished((i,), "9", (0.9, 0.0), i, right=False) for i in range(3)]
  right = Finished((3,), "7", (0.1, 1.0), 3, right=True)
  assert choose([*wrong, right], Choice(aggregate="mean", vote=vote)) is right
  assert choose([], Choice(vote=vote)) is None


def test_scores_are_the_values_at_the_ends_of_steps(tokenizer):
  tokens = encode_completion(tokenizer, Completion(("1+2=3", "3*4=12"), "(1+2)*4"))
  values = np.arange(len(tokens), dtype=np.float32) / 64
  one = finished(tokenizer, tokens, values, spent=99)
  ends = [tokenizer.step_id, tokenizer.end_think_id, tokenizer.end_id]
  assert one.scores == tuple(tokens.index(end) / 64 for end in ends)
  assert (one.answer, one.spent, one.right) == ("(1+2)*4", 99, None)
  heard = finished(tokenizer, tokens, values, spent=99, right=True)
  assert heard.scores == (*one.scores[:-1], 1.0)


def test_what_has_not_ended_or_never_left_its_thinking_is_no_candidate(tokenizer):
  tokens = encode_completion(tokenizer, Completion(("1+2=3",), "1+2"))
  values = np.zeros(len(tokens))
  assert finished(tokenizer, tokens[:-1], values, spent=1) is None
  unled = [token for token in tokens if token != tokenizer.end_think_id]
  assert finished(tokenizer, unled, values, spent=1) is None


@pytest.mark.parametrize(
  "wrong", [{"score": "likes"}, {"aggregate": "median"}, {"vote": "unanimous"}]
)
def test_nonsense_is_refused(wrong):
  ((name, value),) = wrong.items()
  with pytest.raises(UserError, match=f"{name}='{value}' is unknown"):
    Choice(**wrong)
