"""The status table against golden files; `UPDATE_GOLDEN=1` rewrites them, then read the diff."""

import os
import re
from pathlib import Path

import pytest

from macmesh.testing import scenes
from macmesh.v1 import cluster_pb2, peer_pb2
from macmesh_daemon.cli.status_view import bandwidth, node_state, render_status

GOLDEN = Path(__file__).parent / "golden"
SCENES = ("idle", "loading", "ready", "degraded", "no_quorum", "refused")


def check_golden(name: str, text: str) -> None:
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n")
    assert text + "\n" == path.read_text()


def scene(name: str) -> cluster_pb2.GetStatusResponse:
    made: cluster_pb2.GetStatusResponse = getattr(scenes, name)()
    return made


@pytest.mark.parametrize("name", SCENES)
def test_golden(name: str) -> None:
    check_golden(f"status-{name}", render_status(scene(name)))


@pytest.mark.parametrize("name", ["ready", "no_quorum"])
def test_golden_in_color(name: str) -> None:
    text = render_status(scene(name), color=True)
    check_golden(f"status-{name}-color", text.replace("\x1b", "<ESC>"))
    assert re.sub(r"\x1b\[\d+m", "", text) == render_status(scene(name))


def test_golden_narrow() -> None:
    check_golden("status-ready-narrow", render_status(scenes.ready(), 120))


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("width", [None, 200, 128, 40])
def test_one_line_per_node_whatever_the_width(name: str, width: int | None) -> None:
    status = scene(name)
    lines = render_status(status, width).splitlines()
    assert sum(not line.startswith("#") for line in lines) == 1 + len(status.nodes)
    table = [line for line in lines if not line.startswith("#")]
    for line, node in zip(table[1:], status.nodes, strict=True):
        assert line.startswith(node.member.node_id[:8])
    if width is not None and width >= 128:
        assert all(len(line) <= width for line in lines if not line.startswith("# !"))


def test_quantised_caches_are_told() -> None:
    status = scenes.ready()
    assert "KV at" not in render_status(status)
    status.document.plan.deployments[0].kv_bits = 8
    assert " · KV at 8 bits · " in render_status(status).splitlines()[0]


def test_how_decode_steps_travel_is_told_with_its_reason() -> None:
    status = scenes.ready()
    assert "decode steps" not in render_status(status)
    head = next(node for node in status.nodes if node.HasField("stage") and not node.stage.index)
    head.worker.transfers, head.worker.transfers_reason = "graph", "asked for\x07"
    assert "# decode steps travel in MLX's graphs: asked for?" in render_status(status).splitlines()
    head.worker.transfers = "host"
    assert "# decode steps travel by the host: asked for?" in render_status(status).splitlines()


def test_a_hostile_hostname_cannot_move_the_cursor() -> None:
    status = scenes.ready()
    status.nodes[1].member.facts.hostname = "ev\x1b[2Jil\nname"
    status.health.append("bad\x07line")
    text = render_status(status)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "ev?[2Jil?name" in text


def test_the_transport_between_machines_is_told_with_its_reason() -> None:
    status = scenes.ready()
    assert "transport" not in render_status(status)
    plan = status.document.plan.deployments[0]
    plan.transport, plan.transport_reason = "jaccl", "RDMA over Thunderbolt\x07"
    for number, node in enumerate(status.nodes):
        node.member.facts.host_id = f"machine {number}"
    told = render_status(status).splitlines()
    assert [line for line in told if "transport" in line] == ["# transport: jaccl (RDMA over Thunderbolt?)"]
    plan.transport, plan.transport_reason = "auto", "not jaccl: no cable"
    assert "# transport: the best link for each pair (not jaccl: no cable)" in render_status(status)
    for node in status.nodes:
        node.member.facts.host_id = "one machine"
    assert "transport" not in render_status(status)


def test_what_a_plan_moved_is_told() -> None:
    status = scenes.ready()
    assert "moved" not in render_status(status)
    for node, kept, process, reason in zip(
        status.nodes,
        (3 * 10**9, 0, 0),
        ("kept", "replaced", "new"),
        ("", "jaccl cannot\x07 be rebuilt", ""),
        strict=True,
    ):
        node.worker.kept_bytes, node.worker.loaded_bytes = kept, 5 * 10**9
        node.worker.process, node.worker.process_reason = process, reason
    first, second, _ = (node.member.node_id[:8] for node in status.nodes)
    (line,) = (line for line in render_status(status).splitlines() if "moved" in line)
    assert line == (
        f"# moved: {first} kept 3.00 GB, read 2.00 GB"
        f" · {second} read 5.00 GB, process replaced: jaccl cannot? be rebuilt"
    )
    status.nodes[0].worker.state = peer_pb2.WORKER_STATE_FAILED
    assert first not in next(line for line in render_status(status).splitlines() if "moved" in line)


def test_an_empty_cluster_renders() -> None:
    text = render_status(cluster_pb2.GetStatusResponse())
    assert text.splitlines()[0].startswith("# unknown")
    assert "no coordinator" in text


def test_a_daemon_without_a_cluster_says_what_to_do() -> None:
    status = cluster_pb2.GetStatusResponse(
        node_id="a" * 26, serving_state="unjoined", health=["it belongs to no cluster: join one"]
    )

    assert render_status(status) == (
        "# unjoined · node aaaaaaaa belongs to no cluster, and waits for one\n"
        "# ! it belongs to no cluster: join one"
    )


def test_bandwidth() -> None:
    assert bandwidth(0, 0) == "-"
    assert bandwidth(0, 410) == "?/410 GB/s"
    assert bandwidth(32.4, 0) == "32 GB/s"
    assert bandwidth(612.5, 819) == "612/819 GB/s"


def test_node_states() -> None:
    def states(name: str) -> list[str]:
        return [node_state(node) for node in scene(name).nodes]

    assert states("idle") == ["idle", "idle", "idle"]
    assert states("loading") == ["loading 25%", "loading 50%", "loaded"]
    fetching = scenes.loading().nodes[0]
    fetching.worker.fetch.peer_bytes = 1
    assert node_state(fetching) == "fetching 25%"
    assert states("degraded") == ["ready", "ready", "dead"]
    failed = scenes.degraded().nodes[2]
    failed.liveness = "alive"
    assert node_state(failed) == "failed: heartbeat lost"
    failed.ClearField("worker")
    assert node_state(failed) == "waiting"


def test_the_schedule_of_the_head_is_told() -> None:
    status = scenes.ready()
    status.schedule.CopyFrom(
        peer_pb2.SchedulerStats(
            running=2,
            waiting=1,
            prompts=40,
            prefix_hits=12,
            prompt_tokens=40_960,
            reused_tokens=5120,
            cache_bytes=[1_200_000_000, 900_000_000],
            cache_budget_bytes=[4_000_000_000, 2_000_000_000],
        )
    )
    line = next(line for line in render_status(status).splitlines() if "schedule" in line)
    assert line == (
        "# schedule: 2 running, 1 waiting · prefix hits 12 of 40 prompts (30%) · "
        "5,120 of 40,960 prompt tokens reused · caches 900 MB of 2.00 GB on the fullest stage"
    )
    status.schedule_age_seconds = 7.4
    assert "· 7 s ago" in render_status(status)
    status.schedule.Clear()
    status.schedule_age_seconds = 0
    fresh = next(line for line in render_status(status).splitlines() if "schedule" in line)
    assert fresh == "# schedule: 0 running, 0 waiting"
