"""Drills on a fake cluster, in virtual time: what is measured, and what is judged."""

import asyncio

import pytest

from macmesh.errors import RemoteError
from macmesh_daemon.drill.report import DrillReport, Kind, render
from macmesh_daemon.drill.runner import Drill, DrillError, rehearse
from macmesh_daemon.drill.testing import LOADED_BYTES, NODE_IDS, FakeCluster, Fate
from support.virtual_loop import run_virtual


def drill(kind: Kind = "kill-worker", tokens: int = 40) -> Drill:
    return Drill(kind, NODE_IDS[2], "Once", tokens, 10, 20.0)


def rehearsed(cluster: FakeCluster, what: Drill | None = None) -> DrillReport:
    return run_virtual(rehearse(cluster, what or drill()))


def test_a_stream_that_goes_on_passes_and_every_time_is_told() -> None:
    cluster = FakeCluster()
    report = rehearsed(cluster)

    assert report.passed
    assert report.tokens.received == report.tokens.expected == 40
    assert report.detection_seconds == pytest.approx(0.2, abs=0.01)
    assert report.plan_seconds == pytest.approx(0.5, abs=0.01)
    assert report.ready_seconds == pytest.approx(2.0, abs=0.01)
    assert report.first_token_seconds == pytest.approx(2.0, abs=0.2)
    assert report.pause_seconds == pytest.approx(2.0, abs=0.2)
    assert report.loaded_bytes == dict.fromkeys(NODE_IDS, LOADED_BYTES)
    assert report.new_epoch == "1.1.2"
    assert ("fault", "kill-worker", NODE_IDS[2]) in cluster.calls
    assert [c for c in cluster.calls if c[0] == "generate"] == [("generate", "Once", "40")] * 2


@pytest.mark.parametrize(
    ("fate", "lost", "doubled", "differing"),
    [("lost", 30, 0, 0), ("skips", 2, 0, 0), ("repeats", 0, 2, 0), ("differs", 0, 0, 30)],
)
def test_a_stream_that_does_not_come_whole_fails(fate: Fate, lost: int, doubled: int, differing: int) -> None:
    report = rehearsed(FakeCluster(fate))

    assert not report.passed
    assert (report.tokens.lost, report.tokens.doubled, report.tokens.differing) == (lost, doubled, differing)
    assert report.ready_seconds is not None
    assert bool(report.stream_error) == (fate == "lost")


def test_where_the_stream_is_lost_another_one_tells_when_tokens_come_again() -> None:
    cluster = FakeCluster("lost")
    report = rehearsed(cluster)

    assert report.stream_error == "WORKER_FAILED: the head worker ended"
    assert report.first_token_seconds == pytest.approx(2.1, abs=0.05)
    assert cluster.calls[-1] == ("generate", "Once", "1")
    assert "LOST: WORKER_FAILED" in render(report, "mac-c")


def test_a_stream_that_hangs_is_given_up_and_fails() -> None:
    report = rehearsed(FakeCluster("hangs"))
    assert not report.passed
    assert "in time" in report.stream_error
    assert report.tokens.lost == 30


def test_a_cluster_that_does_not_come_back_fails() -> None:
    report = rehearsed(FakeCluster("lost", recovers=False))
    assert not report.passed
    assert (report.plan_seconds, report.ready_seconds, report.first_token_seconds) == (None, None, None)
    assert "ready after        never" in render(report, "mac-c")


def test_where_another_node_coordinates_the_status_tells_the_times() -> None:
    report = rehearsed(FakeCluster(tells_events=False))
    assert report.passed
    assert report.detection_seconds == pytest.approx(0.2, abs=0.01)
    assert report.ready_seconds == pytest.approx(2.0, abs=0.01)


def test_a_drain_is_undone_whatever_came_of_it() -> None:
    for fate in ("goes on", "lost"):
        cluster = FakeCluster(fate)
        report = rehearsed(cluster, drill("drain"))
        assert report.passed == (fate == "goes on")
        assert set(report.loaded_bytes) == set(NODE_IDS[:2])
        assert [c for c in cluster.calls if c[0] in {"drain", "undo"}] == [
            ("drain", NODE_IDS[2]),
            ("undo", NODE_IDS[2]),
        ]


def test_a_fault_that_is_refused_ends_the_drill_with_the_refusal() -> None:
    refusal = RemoteError("node cccccccc allows no drills", code="PERMISSION_DENIED", reason="FORBIDDEN")
    with pytest.raises(RemoteError, match="allows no drills"):
        rehearsed(FakeCluster(refusal=refusal))


def test_nothing_is_rehearsed_where_nothing_serves_or_the_stream_is_too_short() -> None:
    with pytest.raises(DrillError, match="planning, not ready"):
        rehearsed(FakeCluster(serving_state="planning"))
    with pytest.raises(DrillError, match="too few"):
        rehearsed(FakeCluster(), drill(tokens=10))


def test_a_stream_that_ends_with_the_fault_is_no_drill() -> None:
    class Fast(FakeCluster):
        async def generate(self, prompt: str, max_tokens: int):  # type: ignore[no-untyped-def]  # noqa: ANN202  as the fake
            del prompt
            await asyncio.sleep(0.01)
            yield tuple(range(max_tokens))

    cluster = Fast()
    with pytest.raises(DrillError, match="ask for more tokens"):
        rehearsed(cluster)
    assert not [c for c in cluster.calls if c[0] == "fault"]
