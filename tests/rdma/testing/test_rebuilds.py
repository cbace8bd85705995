import pytest

from macmesh_rdma.testing.rebuilds import drill


@pytest.mark.process
def test_groups_are_rebuilt_in_living_processes_and_losses_are_noticed_without_a_leak() -> None:
    outcome = drill(30)
    assert outcome.leaks == []
    assert (outcome.rounds, outcome.killed) == (30, 3)
