"""Covers where nodes share the RAM of a machine: labels per (set of nodes used, boundary reached)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from macmesh_placement.constrained import SearchTooLargeError
from macmesh_placement.tables import Floats, Integers

#: Most extensions of labels that one search may try: a few tenths of a second.
_MOST_STEPS = 40_000


@dataclass(frozen=True, slots=True)
class HostBudget:
    """A machine that several nodes share.

    Attributes:
        host_id: The machine.
        nodes: Its nodes, by index.
        budget_bytes: Bytes that they may use together.
    """

    host_id: str
    nodes: frozenset[int]
    budget_bytes: int


@dataclass(frozen=True, slots=True)
class _Label:
    missing: float
    used: tuple[float, ...]
    node: int
    begin: int
    parent: "_Label | None"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSearch:
    """Covers of at least two stages within, or closest to, what machines have.

    Attributes:
        needs: For each node [boundaries, boundaries]: bytes of each stage.
        usable_bytes: What each node may use.
        hosts: The shared machines.
        stage_count: Exact number of stages; 0 for any from two on.
        required: Nodes that must take part, as bits.
        may_follow: Whether a node may take the next stage after those in a set.
        tail: The node that must come last, if any.
    """

    needs: list[Integers]
    usable_bytes: list[int]
    hosts: list[HostBudget]
    stage_count: int
    required: int
    may_follow: Callable[[int, int], bool]
    tail: int | None

    def within_limits(self) -> list[tuple[int, int, int]] | None:
        """A cover within every node's memory and every machine's budget, or None.

        Raises:
            SearchTooLargeError: The search would take too long.
        """
        found = self._search(add_usable=False, add_ram=False)
        return None if found is None else found[2]

    def least_excess(self) -> tuple[int, int, list[tuple[int, int, int]]] | None:
        """The cover with the least (bytes beyond the machines' RAM, bytes of usable memory missing).

        Returns:
            Both numbers and the stages; None where the search would be too large, or the rules allow none.
        """
        try:
            found = self._search(add_usable=True, add_ram=False)
            return found if found is not None else self._search(add_usable=True, add_ram=True)
        except SearchTooLargeError:
            return None

    def _search(
        self, *, add_usable: bool, add_ram: bool
    ) -> tuple[int, int, list[tuple[int, int, int]]] | None:
        count = len(self.needs[0])
        last = count - 1
        above = np.triu(np.ones((count, count), dtype=bool), k=1)
        limits = [np.inf if add_usable else float(usable) for usable in self.usable_bytes]
        allowed = [above & (needs <= limit) for needs, limit in zip(self.needs, limits, strict=True)]
        to_go = [self._least_to_go(host, allowed) for host in self.hosts]
        level: dict[tuple[int, int], list[_Label]] = {
            (0, 0): [_Label(0.0, (0.0,) * len(self.hosts), -1, 0, None)]
        }
        complete: list[_Label] = []
        budget = _Steps()
        for size in range(1, (self.stage_count or len(self.needs)) + 1):
            following: dict[tuple[int, int], list[_Label]] = {}
            for used, node, a, b in self._moves(level, allowed):
                kept = following.setdefault((used | 1 << node, b), [])
                budget.spend(len(level[used, a]) + len(kept))
                for label in level[used, a]:
                    new = self._extend(label, node, a, b)
                    if add_ram or self._completable(new, b, to_go):
                        _insert(kept, new)
            if size > 1 and self.stage_count in {0, size}:
                complete += [
                    label
                    for (used, b), labels in following.items()
                    if b == last and self._is_complete(used)
                    for label in labels
                ]
            level = {key: labels for key, labels in following.items() if labels}
        if not complete:
            return None
        best = min(complete, key=lambda label: (self._excess(label), label.missing))
        return int(self._excess(best)), int(best.missing), _walk(best, last)

    def _moves(
        self, level: dict[tuple[int, int], list[_Label]], allowed: list[npt.NDArray[np.bool_]]
    ) -> Iterator[tuple[int, int, int, int]]:
        """The stages that could follow: (nodes used so far, node, begin, end)."""
        for used, a in level:
            for node in range(len(self.needs)):
                if not used >> node & 1 and self.may_follow(used, node):
                    for b in (np.flatnonzero(allowed[node][a, a + 1 :]) + a + 1).tolist():
                        yield used, node, a, b

    def _is_complete(self, used: int) -> bool:
        return not self.required & ~used and (self.tail is None or bool(used >> self.tail & 1))

    def _extend(self, label: _Label, node: int, a: int, b: int) -> _Label:
        need = float(self.needs[node][a, b])
        used = tuple(
            before + need if node in host.nodes else before
            for host, before in zip(self.hosts, label.used, strict=True)
        )
        return _Label(label.missing + max(0.0, need - self.usable_bytes[node]), used, node, a, label)

    def _completable(self, label: _Label, b: int, to_go: list[Floats]) -> bool:
        return all(
            used + rest[b] <= host.budget_bytes
            for host, used, rest in zip(self.hosts, label.used, to_go, strict=True)
        )

    def _least_to_go(self, host: HostBudget, allowed: list[npt.NDArray[np.bool_]]) -> Floats:
        """The least that any stages use of the machine from each boundary on, were a node free to serve twice."""
        count = len(self.needs[0])
        cheapest = np.full((count, count), np.inf)
        for node, (needs, fits) in enumerate(zip(self.needs, allowed, strict=True)):
            use = needs.astype(np.float64) if node in host.nodes else np.zeros((count, count))
            np.minimum(cheapest, np.where(fits, use, np.inf), out=cheapest)
        least: Floats = np.full(count, np.inf)
        least[-1] = 0.0
        for a in range(count - 2, -1, -1):
            least[a] = (cheapest[a, a + 1 :] + least[a + 1 :]).min()
        return least

    def _excess(self, label: _Label) -> float:
        return sum(
            max(0.0, used - host.budget_bytes) for host, used in zip(self.hosts, label.used, strict=True)
        )


class _Steps:
    """Counts what the search has tried, and ends it where that is too much."""

    def __init__(self) -> None:
        self._left = _MOST_STEPS

    def spend(self, steps: int) -> None:
        self._left -= steps
        if self._left < 0:
            raise SearchTooLargeError


def _insert(labels: list[_Label], new: _Label) -> None:
    """Adds the label unless another beats it in every respect; drops those that it beats."""
    for old in labels:
        if old.missing <= new.missing and all(x <= y for x, y in zip(old.used, new.used, strict=True)):
            return
    labels[:] = [
        old
        for old in labels
        if old.missing < new.missing or any(x < y for x, y in zip(old.used, new.used, strict=True))
    ]
    labels.append(new)


def _walk(label: _Label, end: int) -> list[tuple[int, int, int]]:
    stages = []
    current: _Label | None = label
    while current is not None and current.parent is not None:
        stages.append((current.node, current.begin, end))
        end, current = current.begin, current.parent
    return stages[::-1]
