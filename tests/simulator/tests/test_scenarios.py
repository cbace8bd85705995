"""The important cases, each as a readable file: what must come of them, and the decisions on the way."""

import pytest

from simulator.scenario import Scenario, ScenarioError, golden_of, names, trace_of


@pytest.mark.parametrize("name", names())
def test_a_scenario_comes_out_as_before(name: str) -> None:
    golden = golden_of(name)

    assert golden, "no golden trace: PYTHONPATH=tests python -m simulator.scenario --update"
    assert trace_of(name) == golden


def test_an_expectation_that_does_not_hold_fails_with_the_trace() -> None:
    with pytest.raises(ScenarioError, match=r"expect coordinator b: does not hold(.|\n)*coordinator elected"):
        Scenario("nodes 1\nstart\nexpect coordinator b").run()


def test_nonsense_is_refused() -> None:
    with pytest.raises(ScenarioError, match="no such command"):
        Scenario("nodes 1\nfly a").run()
    with pytest.raises(ScenarioError, match="no such condition"):
        Scenario("nodes 1\nexpect fish").run()
    with pytest.raises(ScenarioError, match="unknown options"):
        Scenario("nodes 1 fish 2")
