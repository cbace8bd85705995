"""One planning problem, prepared: which stages fit on which node, and what they cost."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.constrained import ConstrainedSearch, Resource
from macmesh_placement.request import PlanRequest
from macmesh_placement.search import ChainSearch, Path, Search, SubsetSearch
from macmesh_placement.tables import (
    Additive,
    Floats,
    Integers,
    boundaries,
    hop_seconds,
    load_bytes,
    lowest_begins,
    stage_seconds,
    stage_totals,
    whole_model_bytes,
)

#: Most nodes for which every subset in every order is tried.
MAX_EXACT_NODES = 12


@dataclass(frozen=True, slots=True)
class Choice:
    """One plan as the search sees it: its stages and what they cost together."""

    path: tuple[tuple[int, int, int], ...]
    latency_seconds: float
    slowest_seconds: float
    load_bytes: float


class Problem:
    """A request at one context, as arrays.

    Args:
        request: What is asked.
        nodes: The nodes that may take part.
        context_tokens: Tokens of context of one slot.
        share_hosts: Keep all nodes of a machine and respect its RAM; else only the roomiest node of each
            crowded machine.
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
        self.at: Integers = boundaries(self.profile)
        kinds = {node.fused_attention for node in nodes}
        self._totals = {
            fused: stage_totals(self.profile, self.demand, fused_attention=fused) for fused in kinds
        }
        crowded = self._crowded_hosts(nodes)
        self.crowded_hosts = crowded if share_hosts else {}
        if crowded and not share_hosts:
            nodes = tuple(
                node
                for node in nodes
                if node.host not in crowded
                or node
                == max((n for n in nodes if n.host == node.host), key=lambda n: (n.usable_bytes, n.node_id))
            )
        self.all_nodes = nodes
        able = [node for node in nodes if self._holds_something(node)]
        self.nodes = tuple(able)
        self.exact = len(self.nodes) <= MAX_EXACT_NODES

    def _crowded_hosts(self, nodes: tuple[NodeCapacity, ...]) -> dict[str, int]:
        """Machines whose nodes could together need more than the machine has, with what it has."""
        hosts: dict[str, list[NodeCapacity]] = {}
        for node in nodes:
            hosts.setdefault(node.host, []).append(node)
        left = 1 - self.request.reserves.host_reserve_fraction
        budgets = {host: int(min(n.ram_bytes for n in members) * left) for host, members in hosts.items()}
        return {
            host: budgets[host]
            for host, members in hosts.items()
            if len(members) > 1 and sum(n.usable_bytes for n in members) > budgets[host]
        }

    def _holds_something(self, node: NodeCapacity) -> bool:
        totals = self._totals[node.fused_attention]
        steps = np.arange(len(self.at) - 1)
        return bool((totals[steps, steps + 1] <= node.usable_bytes).any()) or self._whole_fits(node)

    def _whole_fits(self, node: NodeCapacity) -> bool:
        limit = min(node.usable_bytes, self.crowded_hosts.get(node.host, node.usable_bytes))
        return self.whole_bytes(node) <= limit

    def whole_bytes(self, node: NodeCapacity) -> int:
        """Bytes that the node needs for the whole model in one stage."""
        return whole_model_bytes(self.profile, self.demand, self._totals[node.fused_attention])

    def totals_of(self, node: NodeCapacity) -> Integers:
        """Bytes of every stage on that node, in plans of more than one stage."""
        return self._totals[node.fused_attention]

    @cached_property
    def seconds(self) -> Additive:
        """Seconds of each stage, hops aside."""
        return stage_seconds(self.request, self.nodes, self.context_tokens)

    @cached_property
    def latency(self) -> Additive:
        """Seconds of each stage with its hop; over a whole plan that is one `row_seconds` too much."""
        hop = self.request.hop_latency_seconds + self.row_seconds
        return Additive(begin=self.seconds.begin + hop, end=self.seconds.end)

    @property
    def row_seconds(self) -> float:
        """Seconds that the hidden state of one token takes over a link, latency aside."""
        row = self.profile.hidden_size * self.profile.activation_bytes
        return row / (self.request.link_gb_per_s * 1e9)

    @cached_property
    def loads(self) -> Additive:
        """Bytes that each stage would have to load."""
        return load_bytes(self.profile, self.nodes)

    @cached_property
    def second_matrices(self) -> Floats:
        """[nodes, boundaries, boundaries]: seconds of each stage."""
        return np.stack([self.seconds.matrix(node) for node in range(len(self.nodes))])

    @cached_property
    def fits(self) -> npt.NDArray[np.bool_]:
        """[nodes, boundaries, boundaries]: the stage fits on the node."""
        return np.stack([self._totals[node.fused_attention] <= node.usable_bytes for node in self.nodes])

    @cached_property
    def low(self) -> Integers:
        """[nodes, boundaries]: lowest begin of a stage that fits, for each end."""
        return lowest_begins(self.fits)

    def low_within(self, seconds: float) -> Integers:
        """As `low`, of stages that take at most that long."""
        return lowest_begins(self.fits & (self.second_matrices <= seconds))

    def host_resources(self) -> list[Resource]:
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

    @cached_property
    def search(self) -> Search:
        """The search for this problem, within its hosts' RAM."""
        resources = self.host_resources()
        if resources:
            return ConstrainedSearch(len(self.nodes), self.request.stage_count, resources)
        if self.exact:
            return SubsetSearch(len(self.nodes), self.request.stage_count)
        return ChainSearch(self.request.stage_count)

    def feasible(self) -> bool:
        """Whether any plan fits."""
        if not self.nodes:
            return False
        if self.singles():
            return True
        if self.request.stage_count == 1 or len(self.at) == 2:  # noqa: PLR2004  no cut point: nothing to search
            return False
        nothing = Additive(
            begin=np.zeros((len(self.nodes), len(self.at))), end=np.zeros((len(self.nodes), len(self.at)))
        )
        return self.search.solve(nothing, self.low) is not None

    def singles(self) -> list[Choice]:
        """Plans of one stage, where allowed."""
        if self.request.stage_count not in {0, 1}:
            return []
        last = len(self.at) - 1
        found = []
        for index, node in enumerate(self.nodes):
            if self._whole_fits(node):
                seconds = self.seconds.of(index, 0, last)
                load = self._whole_load(node)
                found.append(Choice(((index, 0, last),), seconds, seconds, load))
        return found

    def _whole_load(self, node: NodeCapacity) -> float:
        profile = self.profile
        held = node.holds_embedding or (profile.tied and node.holds_head)
        load = sum(
            layer.weight_bytes
            for index, layer in enumerate(profile.layers)
            if index not in node.resident_layers
        )
        load += 0 if held else profile.embedding_bytes
        return load + (0 if node.holds_head else profile.norm_bytes + profile.head_bytes)

    def choice(self, path: Path) -> Choice:
        """What a path costs."""
        seconds = [self.seconds.of(*stage) for stage in path]
        return Choice(
            tuple(path),
            sum(seconds) + hop_seconds(self.request, len(path)),
            max(seconds),
            sum(self.loads.of(*stage) for stage in path),
        )
