"""The cluster's invariants, checked over the event logs of several nodes. Pure.

1. At most one coordinator per term. 2. At most one plan per epoch. 3. No node runs workers of two epochs at once.
4. Nothing of an older epoch is used. 5. A committed document is never lost while a quorum survives. 6. An accepted
request ends in exactly one of finished, cancelled or failed, and its tokens are delivered once, in order.

Clocks of different machines are never compared: across nodes only terms, epochs, versions and hashes count. A
record that is missing (a killed daemon's last, files put aside too long ago, the log of a node that was not given)
is never held against anybody, so a run may pass with fewer logs, and the more are given the more is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.check_cluster import (
    check_committed,
    check_coordinators,
    check_memory,
    check_plans,
)
from macmesh_daemon.eventlog.check_requests import check_requests
from macmesh_daemon.eventlog.check_workers import check_epochs, check_workers
from macmesh_daemon.eventlog.history import History
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from macmesh_daemon.eventlog.history import Violation
    from macmesh_daemon.eventlog.records import Record

_CHECKS = (
    check_coordinators,
    check_plans,
    check_workers,
    check_epochs,
    check_memory,
    check_committed,
    check_requests,
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks found.

    Attributes:
        violations: What must not be; empty where all holds.
        gaps: Where records are missing.
        records: How many were looked at.
        nodes: Of how many nodes.
        terms: How many terms were led.
        epochs: How many epochs workers were started under.
        requests: How many requests were accepted.
    """

    violations: tuple[Violation, ...]
    gaps: tuple[str, ...]
    records: int
    nodes: int
    terms: int
    epochs: int
    requests: int


def check(records: Iterable[Record]) -> Verdict:
    """Check every invariant over the records of any number of nodes, in any order."""
    history = History.of(records)
    return Verdict(
        violations=tuple(violation for each in _CHECKS for violation in each(history)),
        gaps=history.gaps,
        records=sum(len(run.records) for run in history.runs),
        nodes=len(history.nodes()),
        terms=len({tuple(r.facts["ballot"]) for r in history.of_kind(Kind.LEADS)}),
        epochs=len({tuple(r.facts["epoch"]) for r in history.of_kind(Kind.WORKER_STARTED)}),
        requests=len({r.facts["request"] for r in history.of_kind(Kind.ACCEPTED)}),
    )
