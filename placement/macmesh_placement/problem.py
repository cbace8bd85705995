"""The searches on one planning problem, and what its plans cost."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.chain import ChainSearch
from macmesh_placement.constrained import Criterion, LabelSearch, SearchTooLargeError
from macmesh_placement.hops import Hops
from macmesh_placement.instance import Instance
from macmesh_placement.loads import whole_load_bytes
from macmesh_placement.reach import Reach
from macmesh_placement.request import PlanRequest
from macmesh_placement.search import Path, SubsetSearch
from macmesh_placement.tables import (
    Additive,
    Floats,
    Integers,
)
from macmesh_placement.tensor import TensorPlan, tensor_plans
from macmesh_placement.windows import Windows

#: Most labels of one search within the RAM of shared machines.
_MOST_HOST_LABELS = 3_000_000
#: Most labels of one search for the best way back.
_MOST_WAY_BACK_LABELS = 30_000
#: Rows (sets x their nodes) that one problem may spend on the exact way back, where labels are too many. A row
#: takes some microseconds: every search on up to 6 nodes, and several on 8 where the links are of few classes.
_WAY_BACK_ROWS = 20_000


@dataclass(frozen=True, slots=True)
class Choice:
    """One plan as the search sees it, and what it costs together.

    Attributes:
        path: Its stages; of a tensor-parallel plan, the whole model on each node.
        latency_seconds: Seconds of one token, hops and way back included.
        slowest_seconds: Seconds of the slowest stage.
        load_bytes: Bytes to load.
        all_rdma: It has no hop, or all its hops are over RDMA, the way back included.
        tensor: The tensor-parallel plan; None for a pipeline.
    """

    path: tuple[tuple[int, int, int], ...]
    latency_seconds: float
    slowest_seconds: float
    load_bytes: float
    all_rdma: bool = True
    tensor: TensorPlan | None = None


class Problem(Instance):
    """An `Instance` and the searches on it, each built once."""

    def __init__(
        self,
        request: PlanRequest,
        nodes: tuple[NodeCapacity, ...],
        context_tokens: int,
        *,
        share_hosts: bool = True,
    ) -> None:
        super().__init__(request, nodes, context_tokens, share_hosts=share_hosts)
        self._way_back_rows = _WAY_BACK_ROWS
        self._headed: dict[int, SubsetSearch] = {}
        self._last_table: tuple[Additive, Windows, Hops, Floats] | None = None

    @cached_property
    def subsets(self) -> SubsetSearch:
        """The search over all subsets and orders; for `exact` problems."""
        return SubsetSearch(self.shape, self.links.classes)

    @cached_property
    def _rdma_subsets(self) -> SubsetSearch:
        return SubsetSearch(self.shape, self.links.classes, allowed=self.links.rdma_rings())

    def subsets_for(self, hops: Hops) -> SubsetSearch:
        """The search over all subsets, or over those that RDMA links join in a ring where others are barred."""
        return self._rdma_subsets if hops.barred else self.subsets

    @cached_property
    def _chain(self) -> ChainSearch:
        return ChainSearch(self.shape)

    @cached_property
    def _reach(self) -> Reach:
        return Reach(self.shape)

    def cheapest(self, cost: Additive, windows: Windows, hops: Hops) -> Path | None:
        """The cheapest pipeline of several stages, the way back aside, within the RAM of shared machines.

        Raises:
            SearchTooLargeError: Shared machines make the search too large.
        """
        if not self.exact:
            return self._chain.solve(cost, windows, hops)
        subsets = self.subsets_for(hops)
        if not len(subsets.complete()):
            return None
        table = subsets.table(cost, windows, hops)
        self._last_table = (cost, windows, hops, table)
        path = subsets.best_path(table, cost, windows, hops)
        if path is None or not self.host_overflows(path):
            return path
        open_ended = replace(hops, back=np.zeros_like(hops.back), least_back=0.0, most_back=0.0)
        found = self.label_search(hops).solve(
            [Criterion(cost, open_ended, np.inf, table), *self.host_criteria],
            windows,
            label_limit=_MOST_HOST_LABELS,
        )
        return None if found is None else found[1]

    def label_search(self, hops: Hops) -> LabelSearch:
        """A search within several criteria."""
        return LabelSearch(self.subsets_for(hops), self.links.classes)

    def cheapest_closed(
        self, cost: Additive, windows: Windows, hops: Hops, below: float
    ) -> tuple[Path | None, bool]:
        """The cheapest pipeline with its way back, if it costs less than ``below``; and whether that is exact.

        By labels, where few are enough; else one search for each node as the head, where few enough rows are
        left.
        """
        if not self.exact:
            return None, False
        table = self._table(cost, windows, hops)
        criteria = [Criterion(cost, hops, below, table), *self.host_criteria]
        limit = _MOST_HOST_LABELS if self.crowded_hosts else _MOST_WAY_BACK_LABELS
        try:
            found = self.label_search(hops).solve(criteria, windows, label_limit=limit)
        except SearchTooLargeError:
            return (None, False) if self.crowded_hosts else self._by_heads(cost, windows, hops, below)
        return (None if found is None else found[1]), True

    def _table(self, cost: Additive, windows: Windows, hops: Hops) -> Floats:
        """The table of the last search, if that was this one; else anew."""
        last = self._last_table
        if last is not None and last[0] is cost and last[1] is windows and last[2] is hops:
            return last[3]
        return self.subsets_for(hops).table(cost, windows, hops)

    def _by_heads(
        self, cost: Additive, windows: Windows, hops: Hops, below: float
    ) -> tuple[Path | None, bool]:
        best: Path | None = None
        for kind in range(self.hops.class_count):
            if self.shape.head is not None and self.links.classes[self.shape.head] != kind:
                continue
            self._way_back_rows -= (len(self.nodes) << len(self.nodes)) // 2
            if self._way_back_rows < 0:
                return best, False
            if kind not in self._headed:
                self._headed[kind] = SubsetSearch(self.shape, self.links.classes, head_class=kind)
            search = self._headed[kind]
            closed = search.closed_path(search.table(cost, windows, hops), cost, windows, hops)
            if closed is not None and closed[0] < below:
                below, best = closed
        return best, True

    def reachable(self, low: Integers) -> bool:
        """Whether a pipeline of several stages lies within these windows.

        Raises:
            SearchTooLargeError: Shared machines make the search too large.
        """
        if self.exact and not self._reach.possible(low):
            return False
        if self.exact and not self.crowded_hosts:
            return True
        nothing = Additive(begin=np.zeros(low.shape), end=np.zeros(low.shape))
        classes = np.zeros(len(low), dtype=np.int64)
        free = Hops(classes, np.zeros((1, 1)), np.zeros((1, 1)), 0.0, 0.0)
        if not self.exact:
            return self._chain.solve(nothing, Windows(low), free) is not None
        search = SubsetSearch(self.shape, classes)
        windows = Windows(low)
        table = search.table(nothing, windows, free)
        path = search.best_path(table, nothing, windows, free)
        if path is None or not self.host_overflows(path):
            return path is not None
        found = LabelSearch(search, classes).solve(
            [Criterion(nothing, None, 0.0, table), *self.host_criteria],
            windows,
            label_limit=_MOST_HOST_LABELS,
        )
        return found is not None

    def feasible(self) -> bool:
        """Whether any plan fits, pins respected.

        Raises:
            SearchTooLargeError: Shared machines make the search too large.
        """
        if not self.nodes:
            return False
        if self.singles() or self.tensors():
            return True
        return self.several_stages and self.reachable(self.low)

    def singles(self) -> list[Choice]:
        """Plans of one stage, where allowed."""
        if self.request.stage_count not in {0, 1} or self.pins_impossible:
            return []
        pinned = self.request.pinned_node_ids
        last = len(self.at) - 1
        found = []
        for index, node in enumerate(self.nodes):
            if self._whole_fits(node) and pinned <= {node.node_id}:
                seconds = self.seconds.of(index, 0, last)
                load = whole_load_bytes(self.profile, node)
                found.append(Choice(((index, 0, last),), seconds, seconds, load))
        return found

    def tensors(self) -> list[Choice]:
        """Plans that split every layer over equal nodes, where allowed."""
        if not self.request.allow_tensor_parallel or self.pins_impossible:
            return []
        last = len(self.at) - 1
        return [
            Choice(
                tuple((node, 0, last) for node in plan.nodes),
                plan.latency_seconds,
                plan.latency_seconds,
                plan.load_bytes,
                all_rdma=self.links.all_rdma(list(plan.nodes)) and plan.link.kind == "rdma",
                tensor=plan,
            )
            for plan in tensor_plans(
                self.request,
                self.nodes,
                self.rates,
                self.demand,
                self.mixture,
                self.links,
                self._budgets,
            )
        ]

    def choice(self, path: Path) -> Choice:
        """What a path costs."""
        if len(path) == 1:
            node = self.nodes[path[0][0]]
            seconds = self.seconds.of(*path[0])
            return Choice(tuple(path), seconds, seconds, whole_load_bytes(self.profile, node))
        times = [self.seconds.of(*stage) for stage in path]
        return Choice(
            tuple(path),
            sum(times) + sum(self.hop_seconds(tuple(path))),
            max(times),
            sum(self.loads.of(*stage) for stage in path),
            all_rdma=self.links.all_rdma([node for node, _, _ in path]),
        )

    def current(self) -> Choice | None:
        """The pipeline that the nodes run now, as far as what they hold tells it, if it may go on."""
        holding = [
            (min(node.resident_layers), index)
            for index, node in enumerate(self.nodes)
            if node.resident_layers and node.resident_ways == 1
        ]
        path: Path = []
        edges = {int(layer): boundary for boundary, layer in enumerate(self.at)}
        for first, index in sorted(holding):
            held = self.nodes[index].resident_layers
            a, b = edges.get(first), edges.get(first + len(held))
            begins_right = a == (path[-1][2] if path else 0)
            if a is None or b is None or not begins_right or held != set(range(first, first + len(held))):
                return None
            path.append((index, a, b))
        if not path or path[-1][2] != len(self.at) - 1:
            return None
        return self.choice(path) if self._allowed(path) else None

    def _allowed(self, path: Path) -> bool:
        if len(path) == 1:
            return any(single.path == tuple(path) for single in self.singles())
        used = {node for node, _, _ in path}
        return (
            self.several_stages
            and self.shape.stage_count in {0, len(path)}
            and self.shape.required <= used
            and all(self.fits(stage) for stage in path)
            and not self.host_overflows(path)
        )
