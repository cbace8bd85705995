"""Lines that a random run rarely needs: tests that the mutants of the core asked for."""

from dataclasses import replace

from macmesh_daemon.cluster.messages import HeartbeatRequest
from simulator.solo import Solo, document, stored


def test_a_late_heartbeat_that_tells_an_older_commit_takes_none_back() -> None:
    node = Solo(stored())
    first, second = document(seq=1), replace(document(), seq=2)
    node.answer("a", HeartbeatRequest(1, 1, 1, first, 1, 1, 1))
    node.answer("a", HeartbeatRequest(1, 1, 2, second, 1, 2, 1))
    node.answer("a", HeartbeatRequest(1, 1, 1, None, 1, 1, 1))

    assert node.machine.view.document == second
    assert node.machine._context.state.commit_version == (1, 1, 2)
