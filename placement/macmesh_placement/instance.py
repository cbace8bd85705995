"""One planning problem as arrays: which stages fit on which node, and what they cost."""

from functools import cached_property

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.chain import link_order
from macmesh_placement.constrained import Criterion, Resource
from macmesh_placement.costs import Mixture, Rates, stage_seconds
from macmesh_placement.hops import Hops, LinkMap
from macmesh_placement.loads import stage_loads
from macmesh_placement.request import PlanRequest
from macmesh_placement.search import Path, Shape
from macmesh_placement.tables import (
    Additive,
    Integers,
    boundaries,
    lowest_begins,
    lowest_begins_within,
    totals_by_attention,
    whole_model_bytes,
)
from macmesh_placement.tensor import tensor_ledger
from macmesh_placement.windows import Windows

#: Most nodes for which every subset in every order is tried.
MAX_EXACT_NODES = 12


class Instance:
    """A request at one context, as arrays.

    Args:
        request: What is asked, its pins included; see `PlanRequest.without_pins`.
        nodes: The nodes that may take part.
        context_tokens: Tokens of context of one slot.
        share_hosts: Keep all nodes of a machine and respect its RAM; else only the roomiest node (or a pinned
            one) of each crowded machine.
    """

    def __init__(
        self,
        request: PlanRequest,
        nodes: tuple[NodeCapacity, ...],
        context_tokens: int,
        *,
        share_hosts: bool = True,
    ) -> None:
        self.request = request
        self.profile = request.profile
        self.context_tokens = context_tokens
        self.demand = request.demand(context_tokens)
        self._offered = nodes
        self.mixture = Mixture.of(request, context_tokens)
        self.at: Integers = boundaries(self.profile)
        self._totals = totals_by_attention(self.profile, self.demand, nodes)
        self._budgets = request.host_budgets_bytes
        crowded = self._crowded_hosts(nodes)
        self.crowded_hosts = crowded if share_hosts else {}
        if crowded and not share_hosts:
            nodes = self._roomiest(nodes, crowded)
        self.all_nodes = nodes
        able = tuple(node for node in nodes if self._holds_something(node))
        self.exact = len(able) <= MAX_EXACT_NODES
        if not self.exact:
            able = self._in_link_order(able)
        self.nodes = able
        #: A node that must take part can hold no stage at all.
        self.pins_impossible = not request.pinned_node_ids <= {node.node_id for node in able}

    def _roomiest(self, nodes: tuple[NodeCapacity, ...], crowded: dict[str, int]) -> tuple[NodeCapacity, ...]:
        pinned = self.request.pinned_node_ids
        return tuple(
            node
            for node in nodes
            if node.host not in crowded
            or node
            == max(
                (other for other in nodes if other.host == node.host),
                key=lambda n: (n.node_id in pinned, n.usable_bytes, n.node_id),
            )
        )

    def _in_link_order(self, nodes: tuple[NodeCapacity, ...]) -> tuple[NodeCapacity, ...]:
        place = {node.node_id: index for index, node in enumerate(nodes)}
        links = LinkMap(self.request, nodes, collapse=False)
        order = link_order(
            links.hops(self.request, self.mixture),
            place.get(self.request.head_node_id),
            place.get(self.request.tail_node_id),
        )
        return tuple(nodes[index] for index in order)

    def _crowded_hosts(self, nodes: tuple[NodeCapacity, ...]) -> dict[str, int]:
        """Machines whose nodes could together need more than the machine has, with what it has."""
        return {
            host: budget
            for host, budget in self._budgets.items()
            if sum(self._limit_bytes(node) for node in nodes if node.host == host) > budget
        }

    def _limit_bytes(self, node: NodeCapacity) -> int:
        """The most that the node's stage may need: what it may use, and what its machine has."""
        return min(node.usable_bytes, self._budgets.get(node.host, node.usable_bytes))

    def _holds_something(self, node: NodeCapacity) -> bool:
        totals = self._totals[node.fused_attention]
        steps = np.arange(len(self.at) - 1)
        return (
            bool((totals[steps, steps + 1] <= self._limit_bytes(node)).any())
            or self._whole_fits(node)
            or self._holds_part(node)
        )

    def _holds_part(self, node: NodeCapacity) -> bool:
        """Whether the node can be one of those that share every layer, where that is allowed."""
        return self.request.allow_tensor_parallel and any(
            tensor_ledger(self.profile, shard, self.demand, node).total_bytes <= node.usable_bytes
            for shard in self.profile.tensor_shards
        )

    def _whole_fits(self, node: NodeCapacity) -> bool:
        return self.whole_bytes(node) <= self._limit_bytes(node)

    def whole_bytes(self, node: NodeCapacity) -> int:
        """Bytes that the node needs for the whole model in one stage."""
        return whole_model_bytes(self.profile, self.demand, self._totals[node.fused_attention])

    def totals_of(self, node: NodeCapacity) -> Integers:
        """Bytes of every stage on that node, in plans of more than one stage."""
        return self._totals[node.fused_attention]

    @cached_property
    def shape(self) -> Shape:
        """What a pipeline of several stages must look like."""
        place = {node.node_id: index for index, node in enumerate(self.nodes)}
        return Shape(
            node_count=len(self.nodes),
            stage_count=self.request.stage_count,
            required=frozenset(
                place[node_id] for node_id in self.request.pinned_node_ids if node_id in place
            ),
            head=place.get(self.request.head_node_id),
            tail=place.get(self.request.tail_node_id),
        )

    @property
    def several_stages(self) -> bool:
        """Plans of more than one stage are worth looking for."""
        shape = self.shape
        return (
            not self.pins_impossible
            and len(self.nodes) > 1
            and len(self.at) > 2  # noqa: PLR2004  a cut point at least
            and shape.stage_count != 1
            and (shape.head is None or shape.head != shape.tail)
        )

    @cached_property
    def seconds(self) -> Additive:
        """Seconds of each stage for the request's mixture of tokens, hops aside."""
        return stage_seconds(self.profile, self.rates, self.mixture)

    @cached_property
    def rates(self) -> Rates:
        """What the nodes were measured at; what is unknown is taken from the slowest node offered."""
        return Rates.of(self.nodes, self._offered)

    @cached_property
    def links(self) -> LinkMap:
        """The links between the nodes."""
        return LinkMap(self.request, self.nodes, collapse=self.exact)

    @cached_property
    def hops(self) -> Hops:
        """Seconds of every hop."""
        return self.links.hops(self.request, self.mixture)

    @cached_property
    def rdma_hops(self) -> Hops:
        """As `hops`, with all but RDMA links barred."""
        return self.hops.restricted(self.links.rdma_allowed)

    @cached_property
    def loads(self) -> Additive:
        """Bytes that each stage would have to load."""
        return stage_loads(self.profile, self.nodes)

    @cached_property
    def low(self) -> Integers:
        """[nodes, boundaries]: lowest begin of a stage that fits, for each end."""
        low = np.empty((len(self.nodes), len(self.at)), dtype=np.int64)
        for fused, totals in self._totals.items():
            mine = np.array([node.fused_attention is fused for node in self.nodes], dtype=bool)
            limits = np.array([self._limit_bytes(node) for node in self.nodes], dtype=np.int64)
            low[mine] = lowest_begins(totals, limits[mine])
        return self.shape.ends(low)

    @cached_property
    def windows(self) -> Windows:
        """Where stages that fit may begin."""
        return Windows(self.low)

    def low_within(self, seconds: float) -> Integers:
        """As `low`, of stages that take at most that long."""
        return np.maximum(self.low, lowest_begins_within(self.seconds, seconds))

    def windows_within(self, seconds: float) -> Windows:
        """As `windows`, of stages that take at most that long."""
        return self.windows if np.isinf(seconds) else Windows(self.low_within(seconds))

    @cached_property
    def host_criteria(self) -> list[Criterion]:
        """The RAM of machines that could be overcrowded."""
        return [Criterion(resource.use, None, resource.limit) for resource in self._host_limits]

    @cached_property
    def _host_limits(self) -> list[Resource]:
        """The RAM of machines that could be overcrowded, as resources."""
        resources = []
        for host, budget in sorted(self.crowded_hosts.items()):
            use = np.stack(
                [
                    self._totals[node.fused_attention] * (1.0 if node.host == host else 0.0)
                    for node in self.nodes
                ]
            )
            resources.append(Resource(use=use, limit=float(budget)))
        return resources

    def host_overflows(self, path: Path) -> bool:
        """Whether the path needs more than a shared machine has."""
        return any(
            sum(resource.use[stage] for stage in path) > resource.limit for resource in self._host_limits
        )

    def hop_seconds(self, path: tuple[tuple[int, int, int], ...]) -> list[float]:
        """Seconds of each stage's hop; the last stage's is the way back."""
        return [0.0] if len(path) == 1 else self.hops.of_path([node for node, _, _ in path])

    def fits(self, stage: tuple[int, int, int]) -> bool:
        """Whether the stage may be part of a plan of several stages."""
        node, a, b = stage
        return bool(self.low[node, b] <= a) and bool(self.shape.begins(len(self.at))[node, a])
