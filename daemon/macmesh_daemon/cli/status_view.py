"""The status table: `render_status` is pure, so that it can be tested against golden files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from macmesh.types import prefix_hit_rate
from macmesh.v1 import peer_pb2
from macmesh_daemon.cli import units
from macmesh_daemon.cli.output import printable
from macmesh_daemon.cli.table import BOLD, DIM, GREEN, RED, RESET, YELLOW, Column, cut, render_table

if TYPE_CHECKING:
    from macmesh.v1 import cluster_pb2

#: Hex digits of a node id that tell nodes apart.
SHORT_ID: Final = 8

#: Serving state of a daemon on a machine that belongs to no cluster.
UNJOINED: Final = "unjoined"

_NOTHING: Final = "-"
#: Workers tell their figures every 2 s; older ones say so.
_OLD_SECONDS: Final = 5.0
_STATE_COLUMN: Final = 11
_COLUMNS: Final = (
    Column("NODE", least=14),
    Column("ROLE"),
    Column("CHIP", least=8),
    Column("RAM", right=True),
    Column("USABLE", right=True),
    Column("BANDWIDTH", right=True),
    Column("LAYERS", right=True),
    Column("WEIGHTS", right=True),
    Column("KV@FULL", right=True),
    Column("HEADROOM", right=True),
    Column("LINK"),
    Column("STATE", least=10),
)
_WORKER_STATES: Final = {
    peer_pb2.WORKER_STATE_STARTING: "starting",
    peer_pb2.WORKER_STATE_LOADING: "loading",
    peer_pb2.WORKER_STATE_LOADED: "loaded",
    peer_pb2.WORKER_STATE_READY: "ready",
    peer_pb2.WORKER_STATE_FAILED: "failed",
    peer_pb2.WORKER_STATE_STOPPED: "stopped",
}
_LIVING: Final = frozenset(_WORKER_STATES) - {peer_pb2.WORKER_STATE_FAILED, peer_pb2.WORKER_STATE_STOPPED}
_COLOR_OF_STATE: Final = {
    "ready": GREEN,
    "idle": "",
    "alive": "",
    "failed": RED,
    "dead": RED,
    "incompatible": RED,
    "degraded": RED,
    "refused": RED,
    "suspect": YELLOW,
    "unknown": YELLOW,
}


def render_status(
    status: cluster_pb2.GetStatusResponse, width: int | None = None, *, color: bool = False
) -> str:
    """The cluster as text: ``#`` lines of health on top, then one line per node.

    Args:
        status: As the daemon tells it.
        width: Columns of the terminal; None does not limit.
        color: With escape sequences.
    """
    lines = [f"# {line}" for line in _summary(status)]
    health = [f"# ! {printable(line)}" for line in status.health]
    if width is not None:
        lines = [cut(line, width) for line in lines]
    if color:
        lines = [_paint_first(line, status.serving_state) for line in lines[:1]] + lines[1:]
        health = [f"{RED if not status.has_quorum else YELLOW}{line}{RESET}" for line in health]
    if status.serving_state == UNJOINED:
        return "\n".join([*lines, *health])
    rows, colors = [], {}
    for index, node in enumerate(status.nodes):
        state = node_state(node)
        rows.append(_row(node, state, answers=node.member.node_id == status.node_id))
        tone = _COLOR_OF_STATE.get(state.split()[0].rstrip(":"), YELLOW)
        if color and tone:
            colors[index, _STATE_COLUMN] = tone
    table = render_table(_COLUMNS, rows, width=width, colors=colors, header_color=BOLD if color else "")
    return "\n".join([lines[0], *health, *lines[1:], table])


def _summary(status: cluster_pb2.GetStatusResponse) -> list[str]:
    """What is served, and who decides."""
    if status.serving_state == UNJOINED:
        return [f"{UNJOINED} · node {status.node_id[:SHORT_ID]} belongs to no cluster, and waits for one"]
    served = [status.serving_state or "unknown"]
    if status.document.plan.deployments:
        plan = status.document.plan.deployments[0]
        epoch = status.document.plan.epoch
        served[0] += f": {printable(plan.model.model_id)}"
        served.append(f"context {units.count(plan.context_tokens)}")
        served.append(_many(plan.slots, "slot"))
        if plan.kv_bits:
            served.append(f"KV at {plan.kv_bits} bits")
        if plan.parallelism == "tensor":
            served.append(f"tensor parallel, {len(plan.stages)} ways")
        else:
            served.append(f"{_many(len(plan.stages), 'stage')}")
        served.append(f"epoch {epoch.generation}.{epoch.term}.{epoch.seq}")
        if plan.predicted_decode_seconds > 0:
            served.append(f"predicted {1 / plan.predicted_decode_seconds:.1f} tokens/s")
        served.append(f"{status.active_requests} running, {status.waiting_requests} waiting")
    elif status.document.wanted.model.model_id:
        served[0] += f": {printable(status.document.wanted.model.model_id)}"
    else:
        served.append("no model is served; `daemonctl load MODEL` serves one")
    alive = sum(node.liveness == "alive" for node in status.nodes)
    names = {node.member.node_id: node.member.facts.hostname for node in status.nodes}
    leader = status.coordinator_node_id
    who = (
        f"coordinator {leader[:SHORT_ID]} {printable(names.get(leader, ''))}".rstrip()
        if leader
        else "no coordinator"
    )
    cluster = [
        f"cluster {status.cluster or _NOTHING}",
        f"term {status.term}",
        who,
        f"{alive} of {_many(len(status.nodes), 'node')} alive",
        "quorum" if status.has_quorum else "NO QUORUM",
    ]
    return [
        " · ".join(served),
        *_schedule(status),
        *_parallelism(status),
        *_transport(status),
        *_transfers(status),
        *_moved(status),
        " · ".join(cluster),
    ]


def _schedule(status: cluster_pb2.GetStatusResponse) -> list[str]:
    """What the head's schedule counts, where it told."""
    if not status.HasField("schedule"):
        return []
    counted = status.schedule
    parts = [f"schedule: {counted.running} running, {counted.waiting} waiting"]
    rate = prefix_hit_rate(counted)
    if rate is not None:
        parts.append(
            f"prefix hits {units.count(counted.prefix_hits)} of {_many(counted.prompts, 'prompt')} ({rate:.0%})"
        )
        parts.append(
            f"{units.count(counted.reused_tokens)} of {units.count(counted.prompt_tokens)} prompt tokens reused"
        )
    shares = [
        (used / budget, used, budget)
        for used, budget in zip(counted.cache_bytes, counted.cache_budget_bytes, strict=False)
        if budget
    ]
    if shares:
        _, used, budget = max(shares)
        where = " on the fullest stage" if len(shares) > 1 else ""
        parts.append(f"caches {units.size(used)} of {units.size(budget)}{where}")
    if status.schedule_age_seconds >= _OLD_SECONDS:
        parts.append(f"{status.schedule_age_seconds:.0f} s ago")
    return [" · ".join(parts)]


def _parallelism(status: cluster_pb2.GetStatusResponse) -> list[str]:
    """Why every layer is not split over the nodes, where that was allowed."""
    for plan in status.document.plan.deployments:
        if plan.parallelism_reason:
            return [f"not tensor parallel: {printable(plan.parallelism_reason)}"]
    return []


def _transport(status: cluster_pb2.GetStatusResponse) -> list[str]:
    """What carries the arrays and why, where the plan is on several machines."""
    hosts = {node.member.facts.host_id for node in status.nodes if node.HasField("stage")}
    plan = status.document.plan.deployments[0] if status.document.plan.deployments else None
    if plan is None or len(hosts) < 2 or not plan.transport_reason:  # noqa: PLR2004  one machine has none between
        return []
    return [f"transport: {printable(units.transport(plan.transport, plan.transport_reason))}"]


def _transfers(status: cluster_pb2.GetStatusResponse) -> list[str]:
    """How decode steps go from stage to stage, and why so, as the head tells it."""
    told = {node.stage.index: node.worker for node in status.nodes if node.HasField("stage")}
    if len(told) < 2 or not (head := told.get(0)) or not head.transfers:  # noqa: PLR2004  one stage hands nothing on
        return []
    how = {"graph": "in MLX's graphs", "host": "by the host"}.get(head.transfers, printable(head.transfers))
    return [f"decode steps travel {how}: {printable(head.transfers_reason)}"]


def _moved(status: cluster_pb2.GetStatusResponse) -> list[str]:
    """What the running plan cost the workers that served one before: bytes of weights kept and read."""
    told = [told_move(node) for node in status.nodes if node.HasField("stage")]
    return [f"moved: {' · '.join(filter(None, told))}"] if any(told) else []


def told_move(node: cluster_pb2.NodeStatus) -> str:
    """How a node's worker came by its stage; "" where it began with nothing, or has ended."""
    worker = node.worker
    if worker.process not in {"kept", "replaced"} or worker.state not in _LIVING:
        return ""
    name = node.member.node_id[:SHORT_ID]
    read = units.size(max(0, worker.loaded_bytes - worker.kept_bytes))
    if worker.process == "kept":
        return f"{name} kept {units.size(worker.kept_bytes)}, read {read}"
    return f"{name} read {read}, process replaced: {printable(worker.process_reason)}"


def _row(node: cluster_pb2.NodeStatus, state: str, *, answers: bool) -> list[str]:
    facts = node.member.facts
    placed = node.HasField("stage")
    name = f"{node.member.node_id[:SHORT_ID]} {printable(facts.hostname)}".rstrip()
    return [
        name + ("*" if answers else ""),
        node.role or _NOTHING,
        printable(facts.chip.removeprefix("Apple ")) or _NOTHING,
        units.ram(facts.ram_bytes) if facts.ram_bytes else _NOTHING,
        units.size(facts.usable_bytes) if facts.usable_bytes else _NOTHING,
        bandwidth(facts.bandwidth_gb_per_s, facts.table_bandwidth_gb_per_s),
        layers(node.stage.first_layer, node.stage.end_layer) if placed else _NOTHING,
        units.size(node.weights_bytes) if placed else _NOTHING,
        units.size(node.cache_bytes) if placed else _NOTHING,
        units.size(node.headroom_bytes) if placed else _NOTHING,
        link_text(node) or _NOTHING,
        state,
    ]


def link_text(node: cluster_pb2.NodeStatus) -> str:
    """What carries the arrays to the next stage (from the tail: to the head), and how fast it was when made."""
    links = sorted(node.worker.links, key=lambda link: link.peer_stage)
    after = [link for link in links if link.peer_stage > node.stage.index]
    if not links:
        return node.link
    link = (after or links)[0]
    if link.latency_us <= 0:
        return printable(link.provider)
    return f"{printable(link.provider)} {link.latency_us:.0f} us {link.gb_per_s:.1f} GB/s"


def bandwidth(measured_gb_per_s: float, table_gb_per_s: float) -> str:
    """Measured bandwidth, and behind a slash the chip's published one where known: ``612/819 GB/s``."""
    if not measured_gb_per_s and not table_gb_per_s:
        return _NOTHING
    measured = f"{measured_gb_per_s:.0f}" if measured_gb_per_s else "?"
    return f"{measured}/{table_gb_per_s:.0f} GB/s" if table_gb_per_s else f"{measured} GB/s"


def layers(first_layer: int, end_layer: int) -> str:
    """A range of layers, inclusive, with its length: ``36-53 (18)``."""
    return f"{first_layer}-{end_layer - 1} ({end_layer - first_layer})"


def node_state(node: cluster_pb2.NodeStatus) -> str:
    """One word or a few: how the node does, worst first."""
    if node.liveness not in {"alive", ""}:
        return node.liveness if node.drain != "drained" else f"{node.liveness}, drained"
    if node.drain:
        return node.drain
    worker = node.worker
    word = _WORKER_STATES.get(worker.state) if node.HasField("worker") else None
    if word is None:
        return "waiting" if node.HasField("stage") else "idle"
    if word == "loading" and worker.total_bytes:
        word = "fetching" if worker.HasField("fetch") else word
        return f"{word} {100 * worker.loaded_bytes // worker.total_bytes}%"
    if word == "failed" and worker.error:
        return f"failed: {printable(worker.error)}"
    return word


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _paint_first(line: str, state: str) -> str:
    color = _COLOR_OF_STATE.get(state, YELLOW) or DIM
    return f"{color}{line}{RESET}"
