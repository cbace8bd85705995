"""The records of several nodes, arranged for the checks."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from macmesh_daemon.eventlog.records import Kind, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Numbers = tuple[int, ...]
"""An epoch, a version or a ballot: compared lexicographically."""


@dataclass(frozen=True, slots=True)
class Violation:
    """An invariant that does not hold.

    Attributes:
        invariant: Its number, 1 to 6.
        what: What happened, for people.
        records: The records that show it.
    """

    invariant: int
    what: str
    records: tuple[Record, ...]

    def __str__(self) -> str:
        """Name the records by node, incarnation and position."""
        return f"invariant {self.invariant}: {self.what} [{', '.join(r.name for r in self.records)}]"


@dataclass(frozen=True, slots=True)
class Run:
    """One incarnation of a node: its records in order.

    Attributes:
        node: Id of the node.
        incarnation: Which start.
        records: In order.
        is_whole: From its first record on none is missing.
        has_ended: It ended in order, so nothing is missing at its end either.
        is_last: The logs hold no later start of the node: it may run still.
    """

    node: str
    incarnation: int
    records: tuple[Record, ...]
    is_whole: bool
    has_ended: bool
    is_last: bool

    def of(self, *kinds: Kind) -> Iterator[Record]:
        """The records of these kinds."""
        wanted = {str(kind) for kind in kinds}
        return (record for record in self.records if record.kind in wanted)


@dataclass(frozen=True, slots=True)
class History:
    """What happened on some nodes, as far as their logs tell.

    Attributes:
        runs: Every start of every node, each node's in order.
        gaps: For people: where records are missing. What they would tell is not held against a node.
    """

    runs: tuple[Run, ...]
    gaps: tuple[str, ...]

    @classmethod
    def of(cls, records: Iterable[Record]) -> History:
        """Arrange records, which may come in any order."""
        by_run: dict[tuple[str, int], dict[int, Record]] = defaultdict(dict)
        for record in records:
            by_run[record.node, record.incarnation][record.seq] = record
        last = dict(sorted(by_run))
        runs, gaps = [], []
        for (node, incarnation), found in sorted(by_run.items()):
            ordered = tuple(found[seq] for seq in sorted(found))
            seqs = [record.seq for record in ordered]
            lost = any(record.kind == Kind.LOST for record in ordered)
            is_whole = seqs == list(range(1, len(seqs) + 1)) and not lost
            if not is_whole:
                gaps.append(
                    f"{node[:8]}/{incarnation}: records are missing; there are {len(seqs)}, up to {seqs[-1]}"
                )
            runs.append(
                Run(
                    node,
                    incarnation,
                    ordered,
                    is_whole,
                    has_ended=ordered[-1].kind == Kind.ENDED,
                    is_last=incarnation == last[node],
                )
            )
        return cls(tuple(runs), tuple(gaps))

    def of_kind(self, *kinds: Kind) -> Iterator[Record]:
        """The records of these kinds, of all nodes."""
        return (record for run in self.runs for record in run.of(*kinds))

    def nodes(self) -> Mapping[str, tuple[Run, ...]]:
        """Each node's starts, in order."""
        found: dict[str, list[Run]] = defaultdict(list)
        for run in self.runs:
            found[run.node].append(run)
        return {node: tuple(runs) for node, runs in found.items()}


def numbers(value: Any) -> Numbers | None:
    """An epoch, a version or a ballot of a record; None for none."""
    return None if value is None else tuple(int(part) for part in value)


def spelled(value: Numbers | None) -> str:
    """As in status: ``1.4.2``."""
    return "none" if value is None else ".".join(map(str, value))


def is_local(epoch: Numbers) -> bool:
    """Whether the epoch names a plan of one node for itself only."""
    return epoch[0] == 0
