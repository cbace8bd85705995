"""Links between nodes: how long a hop takes, and over what."""

from dataclasses import dataclass
from typing import Literal, get_args

from macmesh_placement.checks import Reader, require_number
from macmesh_placement.errors import LocalClusterError

LinkKind = Literal["shm", "rdma", "tcp"]

#: Latency in milliseconds and bandwidth in GB/s of a link whose file names only the kind, one direction.
#: Assumptions to be replaced by measurements: shared memory as fast as a copy; RDMA as Thunderbolt 5 with the
#: protocol deducted; TCP as 10 gigabit Ethernet.
LINK_DEFAULTS: dict[LinkKind, tuple[float, float]] = {
    "shm": (0.02, 20.0),
    "rdma": (0.05, 6.0),
    "tcp": (0.3, 1.1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What joins two nodes, in both directions.

    Attributes:
        node_ids: The two nodes.
        kind: ``"shm"`` within one machine, ``"rdma"`` over a cable, ``"tcp"`` over any network.
        latency_seconds: Time of one hop beside its bytes.
        gb_per_s: Bandwidth in one direction.
    """

    node_ids: tuple[str, str]
    kind: LinkKind
    latency_seconds: float
    gb_per_s: float

    def __post_init__(self) -> None:
        where = f"link {'-'.join(self.node_ids)}"
        if len(self.node_ids) != 2:  # noqa: PLR2004  a link has two ends
            raise LocalClusterError(f"{where} must join two nodes")
        if len(set(self.node_ids)) != len(self.node_ids):
            raise LocalClusterError(f"{where} joins a node to itself")
        if self.kind not in get_args(LinkKind):
            raise LocalClusterError(f"{where} kind must be one of {get_args(LinkKind)}, not {self.kind!r}")
        for name in ("latency_seconds", "gb_per_s"):
            require_number(getattr(self, name), f"{where} {name}", LocalClusterError)
        if self.gb_per_s == 0:
            raise LocalClusterError(f"{where} gb_per_s must be above 0")

    @classmethod
    def from_json(cls, value: object, where: str) -> "Link":
        """Reads ``{"nodes": [a, b], "kind": ..., "latency_ms": ..., "gb_per_s": ...}``.

        The last two may be left out; see `LINK_DEFAULTS`.

        Raises:
            LocalClusterError: It is no link; the message names the field.
        """
        reader = Reader(value, where, LocalClusterError)
        reader.only({"nodes", "kind", "latency_ms", "gb_per_s", "comment"})
        ends = reader.array("nodes")
        if len(ends) != 2 or not all(isinstance(end, str) for end in ends):  # noqa: PLR2004  a link has two ends
            raise LocalClusterError(f"{where}.nodes must name two nodes")
        kind = reader.text("kind")
        if kind not in LINK_DEFAULTS:
            raise LocalClusterError(f"{where}.kind must be one of {get_args(LinkKind)}, not {kind!r}")
        latency_ms, gb_per_s = LINK_DEFAULTS[kind]
        return cls(
            node_ids=(ends[0], ends[1]),
            kind=kind,
            latency_seconds=reader.number("latency_ms", default=latency_ms) / 1000,
            gb_per_s=reader.number("gb_per_s", default=gb_per_s),
        )


def unknown_or_repeated(links: tuple[Link, ...], node_ids: set[str]) -> str:
    """What is wrong with the links between these nodes; empty where nothing is."""
    pairs: set[frozenset[str]] = set()
    for link in links:
        pair = frozenset(link.node_ids)
        joined = " and ".join(repr(end) for end in link.node_ids)
        if unknown := pair - node_ids:
            return f"links joins {joined}, of which {', '.join(sorted(unknown))} is no known node"
        if pair in pairs:
            return f"links joins {joined} twice"
        pairs.add(pair)
    return ""
