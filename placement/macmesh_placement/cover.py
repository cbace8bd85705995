"""Which nodes can hold the model between them, and what they lack where they cannot.

A *cover* cuts the model into contiguous stages, one per node, in any order of any of the nodes. It obeys the
request's pins and its number of stages; times, links and objectives play no part. Everything here is exact:

* `Cover.possible` answers whether a cover exists within every node's usable memory and every shared machine's
  RAM;
* `Cover.fewest` finds the cover for which the fewest bytes would have to be added.

Both are dynamic programs over (set of nodes used, boundary reached).
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.covered_hosts import HostBudget, HostSearch
from macmesh_placement.request import PlanRequest
from macmesh_placement.tables import Floats, Integers, boundaries, totals_by_attention, whole_model_bytes

Stages = list[tuple[int, int, int]]
"""Stages from first to last: (node, begin boundary, end boundary)."""


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The cover that lacks least: first in RAM of shared machines, then in usable memory.

    Attributes:
        stages: Its stages.
        needed_bytes: What each of them needs.
        missing_bytes: Bytes of usable memory to add, over all nodes.
        hosts_respected: The RAM of shared machines was taken into account.
    """

    stages: Stages
    needed_bytes: list[int]
    missing_bytes: int
    hosts_respected: bool = True


class Cover:
    """The covers of a request's model at one context.

    Args:
        request: What is asked; its pins and its number of stages are respected.
        nodes: The nodes that may take part.
        context_tokens: Tokens of context of one slot.
        share_hosts: Respect the RAM of machines that several nodes of the request share.
    """

    def __init__(
        self,
        request: PlanRequest,
        nodes: tuple[NodeCapacity, ...],
        context_tokens: int,
        *,
        share_hosts: bool = True,
    ) -> None:
        self.nodes = nodes
        self.at: Integers = boundaries(request.profile)
        demand = request.demand(context_tokens)
        totals = totals_by_attention(request.profile, demand, nodes)
        self._needs = [totals[node.fused_attention] for node in nodes]
        self._wholes = [whole_model_bytes(request.profile, demand, needs) for needs in self._needs]
        self._stage_count = request.stage_count
        places = {node.node_id: index for index, node in enumerate(nodes)}
        self._head = places.get(request.head_node_id)
        self._tail = places.get(request.tail_node_id)
        pinned = request.pinned_node_ids
        self._pins_present = pinned <= places.keys()
        self._required = sum(1 << places[name] for name in pinned & places.keys())
        self.hosts = shared_hosts(request, nodes) if share_hosts else []
        self._limits = [
            min([node.usable_bytes, *(host.budget_bytes for host in self.hosts if index in host.nodes)])
            for index, node in enumerate(nodes)
        ]

    @property
    def _last(self) -> int:
        return len(self.at) - 1

    def needed_bytes(self, stage: tuple[int, int, int]) -> int:
        """What a stage needs."""
        node, a, b = stage
        return self._wholes[node] if (a, b) == (0, self._last) else int(self._needs[node][a, b])

    def singles(self) -> list[int]:
        """The nodes that may run the whole model, size aside."""
        if self._stage_count not in {0, 1} or not self._pins_present:
            return []
        return [
            node
            for node in range(len(self.nodes))
            if self._head in {None, node} and self._tail in {None, node} and self._required in {0, 1 << node}
        ]

    @property
    def _several(self) -> bool:
        """Covers of more than one stage are allowed, size aside."""
        if not self._pins_present or self._stage_count == 1:
            return False
        return self._last > 1 and len(self.nodes) > 1 and (self._head is None or self._head != self._tail)

    def possible(self) -> bool:
        """Whether any cover exists within the memory that there is.

        Raises:
            SearchTooLargeError: Shared machines make the exact search too large.
        """
        if any(self._wholes[node] <= self._limits[node] for node in self.singles()):
            return True
        if not self._several:
            return False
        tight = self._tight_hosts()
        found = self._ordered_cover() if self._stage_count or self._required else self._free_cover()
        if not found or not tight:
            return found
        if len(tight) == 1:
            return self._least_use(tight[0]) <= tight[0].budget_bytes
        return self._host_search(tight, self._limits).within_limits() is not None

    def _least_use(self, host: HostBudget) -> float:
        """The fewest bytes of a machine that several stages within the nodes' memory use; inf without any."""
        empty = np.zeros_like(self._needs[0])
        costs = [
            np.where(needs <= limit, needs if index in host.nodes else empty, np.inf)
            for index, (needs, limit) in enumerate(zip(self._needs, self._limits, strict=True))
        ]
        found = self._cheapest(costs)
        return np.inf if found is None else found[1]

    def _tight_hosts(self) -> list[HostBudget]:
        """The shared machines whose nodes could use more than there is."""
        return [
            host for host in self.hosts if sum(self._limits[node] for node in host.nodes) > host.budget_bytes
        ]

    @cached_property
    def _fits(self) -> list[Integers]:
        """For each node [boundaries]: the furthest end of a stage that fits, for each begin; or the begin."""
        count = len(self.at)
        above = np.triu(np.ones((count, count), dtype=bool), k=1)
        found: dict[tuple[int, int], Integers] = {}
        for needs, limit in zip(self._needs, self._limits, strict=True):
            key = (id(needs), limit)
            if key not in found:
                fits = above & (needs <= limit)
                furthest = count - 1 - fits[:, ::-1].argmax(axis=1)
                found[key] = np.where(fits.any(axis=1), furthest, np.arange(count)).astype(np.int64)
        return [found[id(needs), limit] for needs, limit in zip(self._needs, self._limits, strict=True)]

    def _free_cover(self) -> bool:
        """Several stages where no node must take part: how far each set of nodes reaches decides.

        What covers up to a boundary also covers up to any before it, with the later nodes left out, and a
        stage that begins later reaches at least as far.
        """
        furthest = [ends.tolist() for ends in self._fits]
        reach = [0] * (1 << len(self.nodes))
        for used in range(1, len(reach)):
            best = 0
            for node, ends in enumerate(furthest):
                if used >> node & 1:
                    best = max(best, ends[reach[used ^ (1 << node)]])
            if best == self._last:
                return True
            reach[used] = best
        return False

    def _ordered_cover(self) -> bool:
        """Several stages with pins or a forced number: the exact set of boundaries that each set reaches."""
        last = self._last
        furthest = [ends.tolist() for ends in self._fits]
        reached: list[int] = [0] * (1 << len(self.nodes))
        reached[0] = 1
        for used in range(1, len(reached)):
            stages = used.bit_count()
            if self._stage_count and stages > self._stage_count:
                continue
            ends = 0
            for node in range(len(self.nodes)):
                if used >> node & 1 and self._may_follow(used ^ (1 << node), node):
                    ends |= _ends(reached[used ^ (1 << node)], furthest[node])
            reached[used] = ends
            finishes = stages > 1 and self._stage_count in {0, stages} and not self._required & ~used
            at_the_end = self._tail is None or used >> self._tail & 1
            if finishes and at_the_end and ends >> last & 1:
                return True
        return False

    def _may_follow(self, used: int, node: int) -> bool:
        """Whether the pins let the node take the next stage after those in ``used``."""
        if self._head is not None and (node == self._head) != (used == 0):
            return False
        return self._tail is None or not used >> self._tail & 1

    def fewest(self) -> Shortfall | None:
        """The cover for which the fewest bytes would have to be added, or None where the rules allow none.

        RAM of shared machines counts first: usable memory can be set, RAM cannot.
        """
        options = [
            ([(node, 0, self._last)], max(0, self._wholes[node] - self.nodes[node].usable_bytes))
            for node in self.singles()
        ]
        if self._several:
            lacks = [
                np.maximum(needs - node.usable_bytes, 0).astype(np.float64)
                for needs, node in zip(self._needs, self.nodes, strict=True)
            ]
            several = self._cheapest(lacks)
            options += [several] if several is not None else []
        if not options:
            return None
        stages, missing = min(options, key=lambda option: option[1])
        needed = [self.needed_bytes(stage) for stage in stages]
        if not self.hosts or all(_excess(host, stages, needed) == 0 for host in self.hosts):
            return Shortfall(stages, needed, missing)
        return self._fewest_within_hosts(Shortfall(stages, needed, missing, hosts_respected=False))

    def _fewest_within_hosts(self, without: Shortfall) -> Shortfall:
        ranked: list[tuple[int, int, Stages]] = []
        for node in self.singles():
            whole: Stages = [(node, 0, self._last)]
            excess = sum(_excess(host, whole, [self._wholes[node]]) for host in self.hosts)
            ranked.append((excess, max(0, self._wholes[node] - self.nodes[node].usable_bytes), whole))
        if self._several:
            usable = [node.usable_bytes for node in self.nodes]
            found = self._host_search(self.hosts, usable).least_excess()
            if found is None:
                return without
            ranked.append(found)
        _, missing, stages = min(ranked, key=lambda option: option[:2])
        return Shortfall(stages, [self.needed_bytes(stage) for stage in stages], missing)

    def _host_search(self, hosts: list[HostBudget], usable_bytes: list[int]) -> HostSearch:
        return HostSearch(
            needs=self._needs,
            usable_bytes=usable_bytes,
            hosts=hosts,
            stage_count=self._stage_count,
            required=self._required,
            may_follow=self._may_follow,
            tail=self._tail,
        )

    def _cheapest(self, costs: list[Floats]) -> tuple[Stages, int] | None:
        """The several stages that cost least, where a stage's cost is [node][begin, end]."""
        nodes, count = len(self.nodes), len(self.at)
        above = np.triu(np.ones((count, count), dtype=bool), k=1)
        costs = [np.where(above, cost, np.inf) for cost in costs]
        best = np.full((1 << nodes, count), np.inf)
        best[0, 0] = 0.0
        ends: list[tuple[float, int]] = []
        for size in range(1, (self._stage_count or nodes) + 1):
            for members in combinations(range(nodes), size):
                used = sum(1 << node for node in members)
                self._fill(best, used, costs)
                complete = size > 1 and self._stage_count in {0, size} and not self._required & ~used
                if complete:
                    ends.append((float(best[used, -1]), used))
        value, used = min(ends, default=(np.inf, 0))
        if not np.isfinite(value):
            return None
        return self._walk(best, used, costs), int(value)

    def _fill(self, best: Floats, used: int, costs: list[Floats]) -> None:
        for node in (index for index in range(len(self.nodes)) if used >> index & 1):
            before = used ^ (1 << node)
            if self._may_follow(before, node):
                np.minimum(best[used], (best[before][:, None] + costs[node]).min(axis=0), out=best[used])
        if self._tail is not None and not used >> self._tail & 1:
            best[used, -1] = np.inf

    def _walk(self, best: Floats, used: int, costs: list[Floats]) -> Stages:
        stages: Stages = []
        b = len(self.at) - 1
        while used:
            node, a = min(
                (
                    (node, a)
                    for node in range(len(self.nodes))
                    if used >> node & 1 and self._may_follow(used ^ (1 << node), node)
                    for a in range(b)
                ),
                key=lambda choice: best[used ^ (1 << choice[0]), choice[1]] + costs[choice[0]][choice[1], b],
            )
            stages.append((node, a, b))
            used, b = used ^ (1 << node), a
        return stages[::-1]


def _ends(begins: int, furthest: list[int]) -> int:
    """The boundaries, as bits, that a stage reaches from any of the begins."""
    ends = 0
    while begins:
        low = begins & -begins
        a = low.bit_length() - 1
        ends |= (1 << furthest[a] + 1) - (1 << a + 1)
        begins ^= low
    return ends


def _excess(host: HostBudget, stages: Stages, needed: list[int]) -> int:
    """Bytes that the stages need on the machine beyond its budget."""
    used = sum(need for need, (node, _, _) in zip(needed, stages, strict=True) if node in host.nodes)
    return max(0, used - host.budget_bytes)


def shared_hosts(request: PlanRequest, nodes: tuple[NodeCapacity, ...]) -> list[HostBudget]:
    """The machines that several nodes of the request share and one of ``nodes`` is on, ordered by name."""
    members: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        members.setdefault(node.host, []).append(index)
    return [
        HostBudget(host_id=host, nodes=frozenset(members[host]), budget_bytes=budget)
        for host, budget in sorted(request.host_budgets_bytes.items())
        if host in members
    ]
