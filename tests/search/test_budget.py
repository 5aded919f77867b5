"""Budgets and effort levels: one table, one range."""

import pytest

from jaxzero.errors import UserError
from jaxzero.search.budget import EFFORTS, MOST, Budget


def test_efforts_double_from_the_longest_completion():
  budgets = [Budget.of_effort(level, 30).forward_tokens for level in EFFORTS]
  assert budgets == [30 * 2**i for i in range(7)]


def test_a_position_costs_a_token_of_every_model():
  assert Budget(61).positions(1) == 61
  assert Budget(61).positions(2) == 30, "a budget is a cap on both together"


@pytest.mark.parametrize("tokens", [0, -1, MOST + 1])
def test_a_budget_beyond_the_range_is_refused(tokens):
  with pytest.raises(UserError, match=f"budget={tokens} "):
    Budget(tokens)


def test_what_pays_for_nothing_is_refused():
  with pytest.raises(UserError, match=r"budget=1 .* 2 forward tokens"):
    Budget(1).positions(2)
  with pytest.raises(UserError, match=r"'huge'.*none, minimal"):
    Budget.of_effort("huge", 30)
