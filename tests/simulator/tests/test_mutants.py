"""The breaks of the core fit the core as it is, and the runner tells a caught one from a survivor."""

import pytest

from simulator.mutants.catalogue import CATALOGUE
from simulator.mutants.mutant import Mutant
from simulator.mutants.runner import broken_text, try_mutant


@pytest.mark.parametrize("mutant", CATALOGUE, ids=lambda mutant: mutant.name)
def test_every_break_has_its_place_and_is_still_a_program(mutant: Mutant) -> None:
    compile(broken_text(mutant), mutant.file, "exec")


def test_a_break_whose_place_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"occurs 0 times in quorum\.py"):
        broken_text(Mutant("gone", "quorum.py", "no such text", "", ""))


def test_there_are_enough_and_no_name_twice() -> None:
    assert len({mutant.name for mutant in CATALOGUE}) == len(CATALOGUE) >= 35


@pytest.mark.process
def test_the_runner_sees_a_mutant_that_tests_and_simulator_catch() -> None:
    mutant = next(m for m in CATALOGUE if m.name == "the vote is not persisted")
    verdict = try_mutant(mutant, simulate_seconds=20, limit_seconds=50, both=True)

    assert verdict.test.startswith("test_election.py::")
    assert "is not on the drive" in verdict.seed
