"""Links between nodes: how long a hop takes, and over what."""

from dataclasses import dataclass
from typing import Literal, get_args

from macmesh_placement.checks import require_number
from macmesh_placement.errors import LocalClusterError

LinkKind = Literal["shm", "rdma", "tcp"]


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
        if len(set(self.node_ids)) != len(self.node_ids):
            raise LocalClusterError(f"{where} joins a node to itself")
        if self.kind not in get_args(LinkKind):
            raise LocalClusterError(f"{where} kind must be one of {get_args(LinkKind)}, not {self.kind!r}")
        for name in ("latency_seconds", "gb_per_s"):
            require_number(getattr(self, name), f"{where} {name}", LocalClusterError)
        if self.gb_per_s == 0:
            raise LocalClusterError(f"{where} gb_per_s must be above 0")
