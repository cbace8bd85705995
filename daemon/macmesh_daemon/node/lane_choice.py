"""Which transport carries a plan, from what its nodes told of their RDMA devices. Pure."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from macmesh_daemon.cluster.messages import DeviceList, DeviceRow
from macmesh_daemon.cluster.messages import DeviceMatrix as ToldMatrix
from macmesh_placement import Link, Refusal
from macmesh_placement.links import LINK_DEFAULTS
from macmesh_rdma.jaccl.choice import choose_group
from macmesh_rdma.jaccl.device_matrix import MAX_RANKS, DeviceMatrix, MatrixRefusal, device_matrix
from macmesh_rdma.jaccl.facts import RdmaFacts
from macmesh_rdma.jaccl.pool import jaccl_pool_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from macmesh_daemon.cluster.messages import Member
    from macmesh_rdma.jaccl.choice import RequestedTransport

_RANKS = re.compile(r"\branks (\d+) and (\d+)\b")
_RANK = re.compile(r"\brank (\d+)\b")


@dataclass(frozen=True, slots=True)
class TransportChoice:
    """What carries the arrays of a plan.

    Attributes:
        transport: As in a `Deployment`.
        reason: Why, and why not jaccl, for people; empty where there is nothing to carry.
        matrix: The devices, where it is jaccl.
    """

    transport: str
    reason: str = ""
    matrix: ToldMatrix | None = None

    def to_json(self) -> dict[str, object]:
        """As a dry run's answer has it."""
        rows = self.matrix.rows if self.matrix is not None else ()
        return {
            "transport": self.transport,
            "reason": self.reason,
            "devices": [[list(cell.devices) for cell in row.cells] for row in rows],
        }


def rdma_of(member: Member) -> RdmaFacts:
    """What a member told of its RDMA devices; a refusal where it told nothing that can be read."""
    text = member.facts.rdma_json if member.facts is not None else ""
    if not text:
        return RdmaFacts(refused="it has not told of its RDMA devices yet")
    try:
        value = json.loads(text)
        return RdmaFacts.from_json(value if isinstance(value, dict) else {})
    except ValueError as error:
        return RdmaFacts(refused=f"what it told of its RDMA devices cannot be read: {error}")


@dataclass(frozen=True, slots=True)
class RdmaLinks:
    """What RDMA adds to a plan request.

    Attributes:
        links: Between the nodes that a cable joins.
        pool_bytes: The most that jaccl's buffers may take on a node; 0 where it cannot be chosen.
    """

    links: tuple[Link, ...] = ()
    pool_bytes: int = 0


def rdma_links(
    requested: str, members: Iterable[Member], failures: Mapping[frozenset[str], str]
) -> RdmaLinks:
    """The pairs of nodes that could use jaccl, for the planner.

    Args:
        requested: The transport asked for.
        members: The nodes that may take part.
        failures: Sets of nodes between which jaccl has failed; a pair among them has no such link.
    """
    if requested not in {"auto", "jaccl"}:
        return RdmaLinks()
    latency_ms, gb_per_s = LINK_DEFAULTS["rdma"]
    links, wires, joined = [], 0, set()
    for one, other in itertools.combinations(members, 2):
        found = _matrix([one, other])
        pair = (one.node_id, other.node_id)
        if isinstance(found, MatrixRefusal) or frozenset(pair) in failures:
            continue
        links.append(Link(node_ids=pair, kind="rdma", latency_seconds=latency_ms / 1000, gb_per_s=gb_per_s))
        wires = max(wires, len(found.devices[0][1]))
        joined |= set(pair)
    if not links:
        return RdmaLinks()
    return RdmaLinks(tuple(links), jaccl_pool_bytes(min(len(joined), MAX_RANKS), wires))


def choose_transport(
    requested: str, stages: Sequence[Member], failure: str = ""
) -> TransportChoice | Refusal:
    """What carries a plan.

    Args:
        requested: "auto", "shm", "tcp" or "jaccl".
        stages: The node of each stage, head first.
        failure: Why jaccl failed between just these nodes; empty where it did not.

    Returns:
        The choice; a refusal where what was demanded cannot be had. "auto" always can.
    """
    if len(stages) == 1:
        return TransportChoice("none")
    names = [_name(member) for member in stages]
    on_one_machine = len({_host(member) for member in stages}) == 1
    match requested:
        case "shm" if not on_one_machine:
            told = ", ".join(names)
            return _refusal(f"shm joins stages of one machine only, and these are on several: {told}")
        case "shm" | "tcp":
            return TransportChoice(requested, "asked for")
        case "auto" if on_one_machine:
            return TransportChoice("auto", "all stages are on one machine")
        case _:
            return _jaccl_or_links(requested, stages, names, failure)


def _jaccl_or_links(
    requested: str, stages: Sequence[Member], names: Sequence[str], failure: str
) -> TransportChoice | Refusal:
    chosen = choose_group(
        cast("RequestedTransport", requested), _matrix(stages), jaccl_built=True, self_test_failure=failure
    )
    if isinstance(chosen, MatrixRefusal):
        return _refusal(f"jaccl was asked for and cannot be had: {_named('; '.join(chosen.reasons), names)}")
    if chosen.matrix is None:
        refused = "; ".join(reason for _, reason in chosen.refused)
        return TransportChoice("auto", f"not jaccl: {_named(refused, names)}")
    return TransportChoice("jaccl", chosen.reason, _told(chosen.matrix))


def _matrix(members: Sequence[Member]) -> DeviceMatrix | MatrixRefusal:
    hosts: dict[str, int] = {}
    for rank, member in enumerate(members):
        host = _host(member)
        if host and host in hosts:
            return MatrixRefusal((f"ranks {hosts[host]} and {rank} are on one machine",))
        hosts[host] = rank
    return device_matrix([rdma_of(member) for member in members])


def _told(matrix: DeviceMatrix) -> ToldMatrix:
    rows = tuple(DeviceRow(tuple(DeviceList(cell) for cell in row)) for row in matrix.devices)
    return ToldMatrix(rows, matrix.ring)


def _refusal(message: str) -> Refusal:
    return Refusal(kind="transport", message=f"{message}. Set `transport` to auto, or see docs/transport.md.")


def _host(member: Member) -> str:
    return member.facts.host_id if member.facts is not None else ""


def _name(member: Member) -> str:
    hostname = member.facts.hostname if member.facts is not None else ""
    return f"{hostname}/{member.node_id[:8]}" if hostname else member.node_id[:8]


def _named(text: str, names: Sequence[str]) -> str:
    """The text with the nodes in place of their ranks."""
    text = _RANKS.sub(lambda found: f"{names[int(found[1])]} and {names[int(found[2])]}", text)
    return _RANK.sub(lambda found: names[int(found[1])], text)
