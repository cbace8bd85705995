"""Which transport carries a plan, from what its nodes told of their RDMA devices. Pure.

`auto` takes the first of `verbs` and `jaccl` that the cables, the quarantines and the failures so far allow, else the
best link for each pair.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast

from macmesh_daemon.cluster.messages import DeviceList, DeviceRow
from macmesh_daemon.cluster.messages import DeviceMatrix as ToldMatrix
from macmesh_placement import Link, Refusal
from macmesh_placement.links import LINK_DEFAULTS
from macmesh_rdma.errors import LocalOptionError
from macmesh_rdma.jaccl.choice import choose_group
from macmesh_rdma.jaccl.device_matrix import MAX_RANKS, DeviceMatrix, MatrixRefusal, device_matrix
from macmesh_rdma.jaccl.facts import RdmaFacts
from macmesh_rdma.jaccl.pool import jaccl_pool_bytes
from macmesh_rdma.joining.plan import neighbours
from macmesh_rdma.verbs.cables import verbs_cables
from macmesh_rdma.verbs.fit import registered_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from macmesh_daemon.cluster.messages import Member
    from macmesh_rdma.jaccl.choice import RequestedTransport
    from macmesh_rdma.options import LinkOptions
    from macmesh_rdma.verbs.cables import Cables

_RANKS = re.compile(r"\branks (\d+) and (\d+)\b")
_RANK = re.compile(r"\brank (\d+)\b")


@dataclass(frozen=True, slots=True)
class TransportChoice:
    """What carries the arrays of a plan.

    Attributes:
        transport: As in a `Deployment`.
        reason: Why, and why not another, for people; empty where there is nothing to carry.
        matrix: The devices, where it is verbs or jaccl.
        compared: Whether the stages measure TCP beside it.
    """

    transport: str
    reason: str = ""
    matrix: ToldMatrix | None = None
    compared: bool = False

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
        jaccl_bytes: The most that jaccl's buffers may take on a node; 0 where it cannot be chosen.
        verbs_bytes: The most that a link of our own registers on a node; 0 where those cannot be chosen.
    """

    links: tuple[Link, ...] = ()
    jaccl_bytes: int = 0
    verbs_bytes: int = 0


Failures = Mapping[tuple[frozenset[str], str], str]
"""Why a transport failed, by the nodes between which it did and its name."""


def rdma_links(
    requested: str, members: Iterable[Member], failures: Failures, options: LinkOptions
) -> RdmaLinks:
    """The pairs of nodes that could use verbs or jaccl, for the planner.

    Args:
        requested: The transport asked for.
        members: The nodes that may take part.
        options: Of links of our own.
        failures: A pair between which a transport has failed has no link for it.
    """
    latency_ms, gb_per_s = LINK_DEFAULTS["rdma"]
    links, wires, joined, verbs_bytes = [], 0, set(), 0
    for one, other in itertools.combinations(members, 2):
        pair = (one.node_id, other.node_id)
        cables = _jaccl_wires(requested, one, other, failures)
        own = _verbs_bytes(requested, one, other, failures, options)
        if not cables and not own:
            continue
        links.append(Link(node_ids=pair, kind="rdma", latency_seconds=latency_ms / 1000, gb_per_s=gb_per_s))
        verbs_bytes = max(verbs_bytes, own)
        if cables:
            wires = max(wires, cables)
            joined |= set(pair)
    jaccl_bytes = jaccl_pool_bytes(min(len(joined), MAX_RANKS), wires) if joined else 0
    return RdmaLinks(tuple(links), jaccl_bytes, verbs_bytes)


def _jaccl_wires(requested: str, one: Member, other: Member, failures: Failures) -> int:
    if requested not in {"auto", "jaccl"} or (frozenset((one.node_id, other.node_id)), "jaccl") in failures:
        return 0
    found = _matrix([one, other])
    return 0 if isinstance(found, MatrixRefusal) else len(found.devices[0][1])


def _verbs_bytes(requested: str, one: Member, other: Member, failures: Failures, options: LinkOptions) -> int:
    """What a link of our own between two nodes registers; 0 where there can be none."""
    if requested not in {"auto", "verbs"} or (frozenset((one.node_id, other.node_id)), "verbs") in failures:
        return 0
    found = _cables_of((one, other), 0, 1, known_only=requested == "auto")
    if isinstance(found, str):
        return 0
    limits = [rdma_of(member).verbs.limits for member in (one, other)]
    if limits[0] is None or limits[1] is None:
        return options.verbs_bytes(len(found))
    try:
        return registered_bytes(options, limits[0].common(limits[1]), len(found))
    except LocalOptionError:
        return 0


def choose_transport(
    requested: str,
    stages: Sequence[Member],
    failures: Mapping[str, str] | None = None,
    *,
    all_pairs: bool = False,
) -> TransportChoice | Refusal:
    """What carries a plan.

    Args:
        requested: "auto", "shm", "tcp", "verbs" or "jaccl".
        stages: The node of each stage, head first.
        failures: Why a transport failed between just these nodes, by its name.
        all_pairs: Whether stages that are no neighbours must reach each other too.

    Returns:
        The choice; a refusal where what was demanded cannot be had. "auto" always can.
    """
    if len(stages) == 1:
        return TransportChoice("none")
    failures = failures or {}
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
    return _over_rdma(requested, stages, names, failures, all_pairs=all_pairs)


def _over_rdma(
    requested: str,
    stages: Sequence[Member],
    names: Sequence[str],
    failures: Mapping[str, str],
    *,
    all_pairs: bool,
) -> TransportChoice | Refusal:
    if requested == "jaccl":
        return _jaccl_or_links(requested, stages, names, failures.get("jaccl", ""))
    own = _verbs(requested, stages, failures.get("verbs", ""), all_pairs=all_pairs)
    if isinstance(own, TransportChoice):
        return own
    why_not_verbs = _named(own, names)
    if requested == "verbs":
        return _refusal(f"verbs was asked for and cannot be had: {why_not_verbs}")
    chosen = _jaccl_or_links(requested, stages, names, failures.get("jaccl", ""))
    # Where nobody has a verbs library there is nothing to tell of it.
    if isinstance(chosen, Refusal) or not any(rdma_of(member).verbs.is_told for member in stages):
        return chosen
    return replace(chosen, reason=f"{chosen.reason}; not verbs: {why_not_verbs}")


def _verbs(
    requested: str, stages: Sequence[Member], failure: str, *, all_pairs: bool
) -> TransportChoice | str:
    """Links of our own over RDMA devices, or why not."""
    if failure:
        return f"it failed between these nodes: {failure}"
    size = len(stages)
    rows: list[list[tuple[str, ...]]] = [[() for _ in range(size)] for _ in range(size)]
    reasons, wires = [], []
    for a in range(size):
        for b in neighbours(a, size, "mesh" if all_pairs else "pipeline"):
            if a > b:
                continue
            cables = _cables_of(stages, a, b, known_only=requested == "auto")
            if isinstance(cables, str):
                reasons.append(cables)
                continue
            wires.append(len(cables))
            rows[a][b] = tuple(near for near, _ in cables)
            rows[b][a] = tuple(far for _, far in cables)
    if reasons:
        return "; ".join(dict.fromkeys(reasons))
    matrix = ToldMatrix(tuple(DeviceRow(tuple(DeviceList(cell) for cell in row)) for row in rows))
    reason = f"links of our own over RDMA devices, {min(wires)} cable(s) for each pair"
    return TransportChoice("verbs", reason, matrix, compared=requested == "auto")


def _cables_of(stages: Sequence[Member], a: int, b: int, *, known_only: bool) -> Cables | str:
    """The cables between two stages for links of our own, or why there are none."""
    here, there = rdma_of(stages[a]), rdma_of(stages[b])
    for rank, facts, other in ((a, here, stages[b]), (b, there, stages[a])):
        if reason := facts.verbs.quarantine_of(other.node_id):
            return f"ranks {a} and {b}: in quarantine at rank {rank}: {reason}"
    return verbs_cables(here, there, a=a, b=b, known_only=known_only)


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
