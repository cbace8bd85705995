"""What a node can hold and how fast it reads: the other input of the planner."""

from dataclasses import dataclass, field

from macmesh_placement.checks import (
    Reader,
    parse,
    require_flag,
    require_integer,
    require_number,
    require_text,
)
from macmesh_placement.errors import LocalClusterError
from macmesh_placement.links import Link, unknown_or_repeated

CLUSTER_FORMAT = "macmesh-cluster/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCapacity:
    """One node.

    Attributes:
        node_id: Its name, unique in the request.
        ram_bytes: Physical memory of its machine.
        usable_bytes: Bytes that its GPU may wire: the most that its stage may need.
        bandwidth_gb_per_s: Measured memory bandwidth; 0 where unknown.
        host_id: Its machine; nodes of one machine share its RAM. Empty: a machine of its own.
        name: Name for people; empty: the node id.
        flops_tflops: Measured compute of matrix products; None where unknown.
        fused_attention: Its backend has fused attention kernels (Metal has, the CPU has none).
        resident_layers: Layers of the wanted model that it holds in memory now.
        resident_ways: Nodes that share each resident layer by tensor parallelism; 1: it holds whole layers.
        holds_embedding: It holds the embedding now.
        holds_head: It holds the final norm and the head now.
    """

    node_id: str
    ram_bytes: int
    usable_bytes: int
    bandwidth_gb_per_s: float
    host_id: str = ""
    name: str = ""
    flops_tflops: float | None = None
    fused_attention: bool = True
    resident_layers: frozenset[int] = field(default=frozenset())
    holds_embedding: bool = False
    holds_head: bool = False
    resident_ways: int = 1

    def __post_init__(self) -> None:
        for name in ("node_id", "host_id", "name"):
            require_text(getattr(self, name), f"node {name}", LocalClusterError)
        if not self.node_id:
            raise LocalClusterError("node_id is empty")
        where = f"node {self.node_id!r}"
        for name in ("fused_attention", "holds_embedding", "holds_head"):
            require_flag(getattr(self, name), f"{where} {name}", LocalClusterError)
        for layer in self.resident_layers:
            require_integer(layer, f"{where} resident_layers", LocalClusterError)
        require_integer(self.ram_bytes, f"{where} ram_bytes", LocalClusterError, minimum=1)
        require_integer(self.usable_bytes, f"{where} usable_bytes", LocalClusterError)
        require_number(self.bandwidth_gb_per_s, f"{where} bandwidth_gb_per_s", LocalClusterError)
        require_integer(self.resident_ways, f"{where} resident_ways", LocalClusterError, minimum=1)
        if self.flops_tflops is not None:
            require_number(self.flops_tflops, f"{where} flops_tflops", LocalClusterError)
            if self.flops_tflops == 0:
                raise LocalClusterError(
                    f"{where} flops_tflops must be above 0; leave it out where it is unknown"
                )

    @property
    def host(self) -> str:
        """The machine: `host_id`, or one named after the node."""
        return self.host_id or f"node:{self.node_id}"

    @property
    def label(self) -> str:
        """Name for people."""
        return self.name or self.node_id


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a cluster file describes: its nodes and the links between them."""

    nodes: tuple[NodeCapacity, ...]
    links: tuple[Link, ...] = ()


def cluster_from_json(text: str) -> Cluster:
    """The nodes and links that a cluster file describes.

    The file is ``{"format": "macmesh-cluster/1", "nodes": [{...}], "links": [{...}]}``, or only the array of
    nodes. A node has ``name``, ``ram_bytes``, ``usable_bytes``, ``bandwidth_gb_per_s``, and where wanted
    ``node_id`` (default: the name), ``host_id``, ``flops_tflops`` and ``fused_attention``. A link is
    ``{"nodes": [id, id], "kind": "rdma" | "tcp" | "shm"}``, and where measured ``latency_ms`` and
    ``gb_per_s``; see `macmesh_placement.links.LINK_DEFAULTS`.

    Raises:
        LocalClusterError: The text is no such file; the message names the field.
    """
    value = parse(text, "cluster file", LocalClusterError)
    found_links: list[object] = []
    if isinstance(value, dict):
        reader = Reader(value, "cluster", LocalClusterError)
        reader.only({"format", "nodes", "links", "comment"})
        found = reader.text("format", default=CLUSTER_FORMAT)
        if found != CLUSTER_FORMAT:
            raise LocalClusterError(f"cluster.format must be {CLUSTER_FORMAT!r}, not {found!r}")
        value = reader.array("nodes")
        found_links = reader.array("links", default=[])
    if not isinstance(value, list):
        raise LocalClusterError("a cluster file is a JSON object with 'nodes', or an array of nodes")
    nodes = tuple(_node_from_json(item, f"nodes[{index}]") for index, item in enumerate(value))
    if not nodes:
        raise LocalClusterError("cluster.nodes is empty: name at least one node")
    seen: set[str] = set()
    for node in nodes:
        if node.node_id in seen:
            raise LocalClusterError(f"node {node.node_id!r} is there twice: names must differ")
        seen.add(node.node_id)
    links = tuple(Link.from_json(item, f"links[{index}]") for index, item in enumerate(found_links))
    if wrong := unknown_or_repeated(links, seen):
        raise LocalClusterError(f"cluster.{wrong}")
    return Cluster(nodes, links)


_NODE_FIELDS = {
    "name",
    "node_id",
    "host_id",
    "ram_bytes",
    "usable_bytes",
    "bandwidth_gb_per_s",
    "flops_tflops",
    "fused_attention",
}


def _node_from_json(value: object, where: str) -> NodeCapacity:
    reader = Reader(value, where, LocalClusterError)
    reader.only(_NODE_FIELDS)
    name = reader.text("name", default=reader.text("node_id", default=""))
    if not name:
        raise LocalClusterError(f"{where} lacks the field 'name'")
    usable_bytes = reader.integer("usable_bytes", minimum=1)
    ram_bytes = reader.integer("ram_bytes", minimum=1)
    if usable_bytes > ram_bytes:
        raise LocalClusterError(f"{where}.usable_bytes {usable_bytes} exceeds its ram_bytes {ram_bytes}")
    return NodeCapacity(
        node_id=reader.text("node_id", default=name),
        name=name,
        host_id=reader.text("host_id", default=""),
        ram_bytes=ram_bytes,
        usable_bytes=usable_bytes,
        bandwidth_gb_per_s=reader.number("bandwidth_gb_per_s"),
        flops_tflops=reader.optional_number("flops_tflops"),
        fused_attention=reader.flag("fused_attention", default=True),
    )
