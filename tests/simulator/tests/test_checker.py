"""What the checker remembers changes nothing of what it finds."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.member_news import MemberNews
from simulator.checker import Checker, InvariantBrokenError
from simulator.node import SimNode
from simulator.options import draw
from simulator.run import build, run
from simulator.world import World


class _Forgetful(Checker):
    """Checks every step in full, and counts those that `Checker` would not have."""

    def __init__(self) -> None:
        super().__init__()
        self.remembered = self.full = 0

    def on_step(self, node: SimNode, machine: ClusterMachine) -> None:
        if machine._coordinator is None:
            return
        state, disk = machine._context.state, node.disk
        is_known = node.checked is not None and node.checked[0] is state and node.checked[1] is disk
        before = self._findings()
        self._check_coordinator(node, machine, disk)
        self.remembered += is_known
        self.full += not is_known
        assert not is_known or self._findings() == before, (
            "a check that would be left out finds something new"
        )
        node.checked = (state, disk)

    def _findings(self) -> tuple[object, ...]:
        return (
            len(self.coordinators),
            len(self.committed),
            len(self.committed_epochs),
            dict(self.last_committed),
        )


def _world(monkeypatch: pytest.MonkeyPatch, seed: int, checker: type[Checker]) -> World:
    """A world with this checker from its first step on."""
    with monkeypatch.context() as patch:
        patch.setattr("simulator.simulation.Checker", checker)
        return build(draw(seed), story_lines=None)


@pytest.mark.parametrize("seed", range(500, 506))
def test_a_step_that_is_remembered_finds_nothing_when_checked_in_full(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    usual, full = _world(monkeypatch, seed, Checker), _world(monkeypatch, seed, _Forgetful)
    assert isinstance(full.checker, _Forgetful)

    assert run(draw(seed), world=usual) == run(draw(seed), world=full)
    assert usual.story == full.story
    assert (usual.checker.coordinators, usual.checker.committed, usual.checker.committed_epochs) == (
        full.checker.coordinators,
        full.checker.committed,
        full.checker.committed_epochs,
    )
    assert full.checker.remembered > full.checker.full > 0


def _pretend(world: World, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ARG001  one signature for both
    """Let another node take itself for the coordinator of the same term."""
    leader = world.coordinator()
    assert leader is not None
    other = next(node for node in world.nodes.values() if node is not leader)
    other.up._coordinator = leader.up._coordinator


def _lose_a_member(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the coordinator leave a member out of its next version."""
    leader = world.coordinator()
    assert leader is not None
    monkeypatch.setattr(MemberNews, "with_members", lambda _, old: replace(old, members=old.members[:2]))


@pytest.mark.parametrize(
    ("damage", "what"), [(_pretend, "second coordinator"), (_lose_a_member, "were lost")]
)
def test_a_broken_core_is_caught_at_the_same_step(
    monkeypatch: pytest.MonkeyPatch, damage: Callable[[World, pytest.MonkeyPatch], None], what: str
) -> None:
    def caught(checker: type[Checker]) -> tuple[str, int]:
        with monkeypatch.context() as patch:
            patch.setattr("simulator.simulation.Checker", checker)
            world = World("broken", 3)
            world.start()
            damage(world, patch)
            with pytest.raises(InvariantBrokenError, match=what) as error:
                world.run(5.0)
        return str(error.value), world.steps

    assert caught(Checker) == caught(_Forgetful)
