"""`daemonctl drain` and `daemonctl drill` against a scripted daemon."""

import pytest

from macmesh.reasons import Reason
from macmesh.testing import ThreadedFakeDaemon
from macmesh.testing.scenes import MACS
from macmesh.v1 import cluster_pb2
from macmesh.wire_errors import wire_failure
from macmesh_daemon.drill.report import KINDS
from macmesh_daemon.drill.testing import FakeCluster, Fate

from .conftest import Run

MINI = MACS[1].node_id


def asked(daemon: ThreadedFakeDaemon, kind: type[object]) -> list[object]:
    return [request for _, request in daemon.calls if isinstance(request, kind)]


def test_a_drain_waits_until_the_node_serves_nothing(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.status.nodes[1].drain = "drained"
    done = run("drain", "mini")

    assert done.code == 0, done.err
    assert done.out == f"node {MINI[:8]} is drained\n"
    assert "--undo" in done.err
    assert asked(daemon, cluster_pb2.DrainNodeRequest) == [cluster_pb2.DrainNodeRequest(node_id=MINI)]


def test_a_drain_that_takes_longer_than_one_waits_goes_on(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.status.nodes[1].drain = "draining"
    done = run("drain", MINI[:4], "--leave", "--force", "--timeout", "0.2", "--json")

    assert done.code == 75
    assert done.json == {
        "format": "daemonctl-drain/1",
        "node_id": MINI,
        "document_seq": 12,
        "drain": "draining",
        "left": False,
        "serving_state": "ready",
    }
    assert asked(daemon, cluster_pb2.DrainNodeRequest) == [
        cluster_pb2.DrainNodeRequest(node_id=MINI, force=True, leave=True)
    ]


def test_who_is_to_leave_is_awaited_until_it_has_left(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.status.nodes[1].drain = "drained"
    assert run("drain", "mini", "--leave", "--timeout", "0.2").code == 75
    daemon.script.status.nodes[1].liveness = "left"
    done = run("drain", "mini", "--leave")
    assert done.code == 0
    assert "drained and has left" in done.out


def test_an_undo_waits_for_nothing(run: Run, daemon: ThreadedFakeDaemon) -> None:
    assert run("drain", "mini", "--undo").out == f"node {MINI[:8]} may serve again\n"
    assert asked(daemon, cluster_pb2.DrainNodeRequest) == [
        cluster_pb2.DrainNodeRequest(node_id=MINI, undo=True)
    ]
    assert run("drain", "mini", "--undo", "--force").code == 2


def test_a_drain_that_leaves_too_little_says_what_is_missing(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.failures["DrainNode"] = wire_failure(
        Reason.DOES_NOT_FIT, "12 GB are missing on the other nodes", {"bytes_to_add": 12_000_000_000}
    )
    done = run("drain", "mini", "--json")
    assert done.code == 1
    assert done.json["error"]["reason"] == "DOES_NOT_FIT"
    assert done.json["error"]["metadata"]["bytes_to_add"] == "12000000000"


def test_the_status_shows_a_drain(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.status.nodes[1].drain = "draining"
    daemon.script.status.nodes[2].drain = "drained"
    lines = run("status").out.splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["ready", "draining", "drained"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_drill_asks_first(run: Run, daemon: ThreadedFakeDaemon, kind: str) -> None:
    done = run("drill", kind)
    assert done.code == 2
    assert "say --yes" in done.err
    assert "Streams of all clients pause" in done.err
    assert not asked(daemon, cluster_pb2.DrillFaultRequest)
    assert not asked(daemon, cluster_pb2.DrainNodeRequest)


@pytest.mark.usefixtures("daemon")
@pytest.mark.parametrize(("fate", "code"), [("goes on", 0), ("lost", 1)])
def test_the_outcome_of_a_drill_is_its_exit_code(
    run: Run, monkeypatch: pytest.MonkeyPatch, fate: Fate, code: int
) -> None:
    def make(*_: object) -> FakeCluster:
        return FakeCluster(fate, token_seconds=0.001, detect_seconds=0, plan_seconds=0, load_seconds=0.01)

    monkeypatch.setattr("macmesh_daemon.drill.target.ClientTarget", make)
    done = run("drill", "kill-worker", "--yes", "--tokens", "40")
    assert done.code == code
    assert ("passed" in done.out.splitlines()[-1]) == (code == 0)
    value = run("drill", "kill-worker", "--yes", "--tokens", "40", "--json").json
    assert value["format"] == "daemonctl-drill/1"
    assert value["passed"] == (code == 0)
    assert value["node_id"] == MACS[2].node_id, "the last stage's"
    assert value["tokens"] == {
        "expected": 40,
        "received": 40 - 24 * code,
        "lost": 24 * code,
        "doubled": 0,
        "differing": 0,
    }


def test_a_drill_needs_a_cluster_that_serves(run: Run, daemon: ThreadedFakeDaemon) -> None:
    daemon.script.status.serving_state = "loading"
    done = run("drill", "kill-worker", "--yes")
    assert done.code == 1
    assert "loading, not ready" in done.err


def test_a_fault_must_come_within_the_stream(run: Run, daemon: ThreadedFakeDaemon) -> None:
    assert run("drill", "kill-worker", "--yes", "--tokens", "10", "--after", "10").code == 2
    assert not daemon.calls


@pytest.mark.usefixtures("daemon")
def test_a_node_is_named_as_in_other_commands(run: Run) -> None:
    done = run("drill", "kill-worker", "--node", "nobody", "--yes")
    assert done.code == 1
    assert "no member" in done.err
