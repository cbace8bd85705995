"""What every hop between two nodes costs, and which nodes may stand for each other."""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.costs import Mixture, back_seconds, hop_seconds
from macmesh_placement.links import Link
from macmesh_placement.request import PlanRequest
from macmesh_placement.tables import Floats, Integers


@dataclass(frozen=True, slots=True)
class Hops:
    """The cost of hops between nodes, by *link class*.

    Nodes whose links to all others, and among themselves, are equal are of one class: which of them comes
    before or after changes nothing. C is the number of classes.

    Attributes:
        classes: [nodes]; the class of each node.
        forward: [C, C]; cost of handing on from a stage of one class to one of another.
        back: [C, C]; cost of the token's way back, from the class of the last stage to that of the first.
        least_back: The least of the ways back between two different nodes.
        most_back: The most.
        barred: Some hops are barred, for hops over RDMA alone.
    """

    classes: Integers
    forward: Floats
    back: Floats
    least_back: float
    most_back: float
    barred: bool = False

    @property
    def class_count(self) -> int:
        """C."""
        return len(self.forward)

    def of_path(self, nodes: list[int]) -> list[float]:
        """The cost of each stage's hop to the next; the last stage's is the way back."""
        kinds = [int(self.classes[node]) for node in nodes]
        costs = [float(self.forward[left, right]) for left, right in pairwise(kinds)]
        return [*costs, float(self.back[kinds[-1], kinds[0]])]

    def scaled(self, weight: float) -> "Hops":
        """All costs times a weight; what is barred stays so."""
        return replace(
            self,
            forward=_scaled(self.forward, weight),
            back=_scaled(self.back, weight),
            least_back=float(_scaled(np.array(self.least_back), weight)),
            most_back=float(_scaled(np.array(self.most_back), weight)),
        )

    def restricted(self, allowed: npt.NDArray[np.bool_]) -> "Hops":
        """The same with all hops barred that are not allowed, [C, C]."""
        forward, back = np.where(allowed, self.forward, np.inf), np.where(allowed, self.back, np.inf)
        sizes = np.bincount(self.classes, minlength=self.class_count)
        least, most = _extremes(back, sizes)
        return replace(self, forward=forward, back=back, least_back=least, most_back=most, barred=True)


def _scaled(values: Floats, weight: float) -> Floats:
    return np.where(np.isinf(values), np.inf, np.where(np.isinf(values), 0.0, values) * weight)


def _extremes(back: Floats, sizes: Integers) -> tuple[float, float]:
    """Least and most of the ways back that two different nodes can take; infinite where there are none."""
    real = np.ones_like(back, dtype=bool)
    np.fill_diagonal(real, sizes > 1)
    values = back[real]
    return float(values.min(initial=np.inf)), float(values.max()) if len(values) else np.inf


class LinkMap:
    """The links between the nodes of one problem.

    Args:
        request: Its links; other pairs are joined by its default link.
        nodes: The nodes, in the search's order.
        collapse: Put nodes of equal links into one class; else each is its own.
    """

    def __init__(self, request: PlanRequest, nodes: tuple[NodeCapacity, ...], *, collapse: bool) -> None:
        place = {node.node_id: index for index, node in enumerate(nodes)}
        count = len(nodes)
        default = Link(
            node_ids=("", "other"),
            kind="tcp",
            latency_seconds=request.hop_latency_seconds,
            gb_per_s=request.link_gb_per_s,
        )
        self._distinct: list[Link] = [default]
        numbers: dict[tuple[str, float, float], int] = {}
        self._ids = np.zeros((count, count), dtype=np.int64)
        for link in request.links:
            left, right = (place.get(end) for end in link.node_ids)
            if left is None or right is None:
                continue
            key = (link.kind, link.latency_seconds, link.gb_per_s)
            if key not in numbers:
                numbers[key] = len(self._distinct)
                self._distinct.append(link)
            self._ids[left, right] = self._ids[right, left] = numbers[key]
        pairs = self._ids[~np.eye(count, dtype=bool)]
        self.uniform = count < 2 or bool((pairs == pairs[0]).all())  # noqa: PLR2004  a pair has two nodes
        rdma = [link.kind == "rdma" and number > 0 for number, link in enumerate(self._distinct)]
        self._rdma = np.array(rdma)
        self.has_rdma = bool(self._rdma[pairs].any()) if len(pairs) else False
        if self.uniform:
            self.classes = np.zeros(count, dtype=np.int64)
        elif collapse:
            self.classes = _twins(self._ids)
        else:
            self.classes = np.arange(count)
        self._class_ids = self._between_classes()

    def _between_classes(self) -> Integers:
        """[C, C]: the link between two nodes of these classes."""
        members = [
            np.flatnonzero(self.classes == kind) for kind in range(int(self.classes.max(initial=-1)) + 1)
        ]
        first = np.array([found[0] for found in members], dtype=np.int64)
        last = np.array([found[-1] for found in members], dtype=np.int64)
        return self._ids[first[:, None], last[None, :]]

    @property
    def rdma_allowed(self) -> npt.NDArray[np.bool_]:
        """[C, C]: the hop is over RDMA."""
        allowed: npt.NDArray[np.bool_] = self._rdma[self._class_ids]
        return allowed

    def hops(self, request: PlanRequest, mixture: Mixture) -> Hops:
        """What the hops cost for that mixture of tokens."""
        forward = np.array([hop_seconds(request.profile, link, mixture) for link in self._distinct])
        back = np.array([back_seconds(link, mixture) for link in self._distinct])[self._class_ids]
        sizes = np.bincount(self.classes, minlength=len(self._class_ids))
        return Hops(self.classes, forward[self._class_ids], back, *_extremes(back, sizes))

    def all_rdma(self, nodes: list[int]) -> bool:
        """Whether a pipeline over these nodes hops over RDMA only, its way back included."""
        if len(nodes) == 1:
            return True
        after = [*nodes[1:], nodes[0]]
        return bool(self._rdma[self._ids[nodes, after]].all())

    def rdma_rings(self) -> Integers:
        """The sets of two or more nodes, as bits, that some ring of RDMA links joins.

        Dynamic programming over (nodes of a path, its ends) from the lowest node of each set.
        """
        count = len(self._ids)
        near = [
            sum(1 << other for other in range(count) if other != node and self._rdma[self._ids[node, other]])
            for node in range(count)
        ]
        ends = [0] * (1 << count)
        found = []
        for mask in range(1, 1 << count):
            lowest = mask & -mask
            if mask == lowest:
                ends[mask] = mask
                continue
            for node in range(count):
                bit = 1 << node
                if mask & bit and bit != lowest and ends[mask ^ bit] & near[node]:
                    ends[mask] |= bit
            if ends[mask] & near[lowest.bit_length() - 1]:
                found.append(mask)
        return np.array(found, dtype=np.int64)

    def common_link(self, nodes: list[int]) -> Link | None:
        """The link by which every two of these nodes are joined, if it is one and the same kind of link."""
        block = self._ids[np.ix_(nodes, nodes)][~np.eye(len(nodes), dtype=bool)]
        found = [self._distinct[number] for number in np.unique(block)]
        if len({(link.kind, number == 0) for number, link in zip(np.unique(block), found, strict=True)}) != 1:
            return None
        return Link(
            node_ids=("", "other"),
            kind=found[0].kind,
            latency_seconds=max(link.latency_seconds for link in found),
            gb_per_s=min(link.gb_per_s for link in found),
        )


def _twins(ids: Integers) -> Integers:
    """The class of each node: equal links to all others, and to each other."""
    count = len(ids)
    classes = np.full(count, -1, dtype=np.int64)
    found = 0
    for node in range(count):
        if classes[node] >= 0:
            continue
        classes[node] = found
        for other in range(node + 1, count):
            rest = np.ones(count, dtype=bool)
            rest[[node, other]] = False
            if classes[other] < 0 and (ids[node, rest] == ids[other, rest]).all():
                classes[other] = found
        found += 1
    return classes
