import pytest

from jaxzero.evals.settings import RIGHTS, Way, effort, further, grid, search_arguments, ways
from jaxzero.search.play import PlayConfig
from jaxzero.search.strategies import STRATEGIES


def test_every_way_of_the_same_rights_is_tuned_equally():
  for rights, settings in (("verifier", 4), ("value", 11), ("prm", 11)):
    for way in ways(STRATEGIES, (rights,)):
      untuned = way.strategy in ("greedy", "sample", "auto")
      expected = 1 if untuned else 11 if way.strategy == "majority" else settings
      tried = [*grid(way), *further(way, grid(way)[-1])]
      assert len(tried) == effort(way) == expected, way
      assert len({str(one) for one in tried}) == expected, way


def test_ways_without_a_choice_are_measured_once():
  found = ways(STRATEGIES, RIGHTS)
  assert [way.strategy for way in found if way.rights == "none"] == ["greedy", "sample", "majority"]
  others = set(STRATEGIES) - {"greedy", "sample", "majority"}
  assert {(way.strategy, way.rights) for way in found if way.rights != "none"} == {
    (strategy, rights) for strategy in others for rights in RIGHTS
  }
  assert ways(("mcts",), ("prm",)) == [Way("mcts", "prm")]


@pytest.mark.parametrize("rights", RIGHTS)
def test_a_setting_reaches_the_search(rights):
  play = PlayConfig(max_tokens=20)
  for way in ways(STRATEGIES, (rights,)):
    for setting in (*grid(way), *further(way, grid(way)[0])):
      arguments = search_arguments(way, setting, play)
      assert arguments["verify_inside"] == (way.rights == "verifier")
      assert (arguments["choice"].score == "verifier") == (way.rights == "verifier")
      told = {**vars(arguments["play"].tree), **vars(arguments["choice"]), **arguments}
      assert {name: told[name] for name in setting} == setting
      assert arguments["play"].max_tokens == 20
