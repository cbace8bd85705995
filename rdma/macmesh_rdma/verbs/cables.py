"""The RDMA devices by which two nodes reach each other with links of our own, or why there are none. Pure."""

from typing import TYPE_CHECKING

from macmesh_rdma.jaccl.device_matrix import cables_between, missing_cable
from macmesh_rdma.jaccl.facts import RdmaFacts

if TYPE_CHECKING:
    from macmesh_rdma.verbs.facts import VerbsPort

Cables = tuple[tuple[str, str], ...]
"""Devices at both ends of each cable."""


def verbs_cables(here: RdmaFacts, there: RdmaFacts, *, a: int, b: int, known_only: bool) -> Cables | str:
    """The usable cables between two nodes.

    On Macs these are Thunderbolt cables, of which both ends are known. Elsewhere ports whose addresses are of one
    network go together, in the order of their devices' names; only a test of the link shows whether they reach each
    other.

    Args:
        here: of rank ``a``.
        there: of rank ``b``.
        a: a rank, for the reason.
        b: the other one.
        known_only: whether devices of which the other end is not known are left alone.

    Returns:
        The cables; the reason where there are none.
    """
    for rank, facts in ((a, here), (b, there)):
        if why := _why_none(facts):
            return f"rank {rank}{why}"
    if here.macos_build != there.macos_build:
        told = " and ".join(facts.macos_build or "no macOS" for facts in (here, there))
        return f"ranks {a} and {b} must have the same macOS build, not {told}"
    if here.macos_build:
        return _thunderbolt(here, there, a, b)
    if known_only:
        return f"ranks {a} and {b}: what their devices are cabled to is not known; ask for verbs to try them"
    return _of_one_network(here, there, a, b)


def _why_none(facts: RdmaFacts) -> str:
    """Why a node has no cable at all; empty where it may have."""
    if facts.macos_build and facts.refused:
        return f": {facts.refused}"
    if not facts.verbs.is_told:
        return " has not told of a verbs library"
    return f": {facts.verbs.refused}" if facts.verbs.refused else ""


def _thunderbolt(here: RdmaFacts, there: RdmaFacts, a: int, b: int) -> Cables | str:
    cables = cables_between(here, there)
    if not cables:
        return missing_cable(here, there, a, b)
    usable = tuple((near, far) for near, far in cables if not _refused(here, near) + _refused(there, far))
    if usable:
        return usable
    near, far = cables[0]
    why = [*_refused(here, near), *_refused(there, far)]
    return f"ranks {a} and {b} have a cable, but {'; '.join(why)}"


def _refused(facts: RdmaFacts, device: str) -> list[str]:
    port = facts.verbs.port_of(device)
    if port is None:
        return [f"the verbs library lists no {device}"]
    return [port.refused] if port.refused else []


def _of_one_network(here: RdmaFacts, there: RdmaFacts, a: int, b: int) -> Cables | str:
    ends: list[list[VerbsPort]] = []
    for rank, facts in ((a, here), (b, there)):
        usable = [port for port in facts.verbs.ports if not port.refused]
        if not usable:
            why = "; ".join(port.refused for port in facts.verbs.ports) or "it has no RDMA device"
            return f"rank {rank}: {why}"
        ends.append(usable)
    left, found = ends[1], []
    for near in ends[0]:
        far = next((port for port in left if port.network == near.network), None)
        if far is not None:
            left = [port for port in left if port is not far]
            found.append((near.device, far.device))
    if found:
        return tuple(found)
    told = " and ".join(", ".join(f"{port.device} {port.gid}" for port in ports) for ports in ends)
    return f"ranks {a} and {b} have no RDMA devices with addresses of one network ({told})"
