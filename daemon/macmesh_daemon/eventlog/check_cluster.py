"""Invariants 1, 2 and 5: coordinators, plans, and what a quorum has committed."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.history import Numbers, Violation, is_local, numbers, spelled
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macmesh_daemon.eventlog.history import History
    from macmesh_daemon.eventlog.records import Record

_WITH_PLANS = (Kind.PROMISED, Kind.ACTIVE, Kind.STORED, Kind.COMMITTED)


def check_coordinators(history: History) -> Iterator[Violation]:
    """At most one coordinator per term, and one vote of each node in it."""
    led: dict[Numbers, Record] = {}
    for record in history.of_kind(Kind.LEADS):
        ballot = numbers(record.facts["ballot"]) or ()
        first = led.setdefault(ballot, record)
        if first.node != record.node:
            yield Violation(1, f"two coordinators of term {spelled(ballot)}", (first, record))
    for runs in history.nodes().values():
        votes: dict[Numbers, Record] = {}
        for record in (r for run in runs for r in run.of(Kind.STARTED, Kind.BALLOT)):
            ballot = numbers(record.facts["ballot"]) or ()
            if not record.facts["voted_for"]:
                continue
            first = votes.setdefault(ballot, record)
            if first.facts["voted_for"] != record.facts["voted_for"]:
                yield Violation(1, f"two votes in term {spelled(ballot)}", (first, record))


def check_plans(history: History) -> Iterator[Violation]:
    """At most one plan per epoch, wherever it is named."""
    known: dict[Numbers, Record] = {}
    for record in history.of_kind(*_WITH_PLANS):
        epoch = numbers(record.facts["epoch"])
        if epoch is None or not record.facts["plan"]:
            continue
        first = known.setdefault(epoch, record)
        if first.facts["plan"] != record.facts["plan"]:
            yield Violation(2, f"two plans under epoch {spelled(epoch)}", (first, record))
    owners: dict[Numbers, Record] = {}
    for record in history.of_kind(Kind.WORKER_STARTED):
        epoch = numbers(record.facts["epoch"]) or ()
        if is_local(epoch):
            first = owners.setdefault(epoch, record)
            if first.node != record.node:
                yield Violation(2, f"two nodes run the plan {spelled(epoch)} of one", (first, record))


def check_memory(history: History) -> Iterator[Violation]:
    """What a node made durable is there after a restart, and never goes back.

    A vote that is forgotten can make a second coordinator, a promise an old epoch's use, a document its loss.
    """
    for runs in history.nodes().values():
        for invariant, name, kinds, key in (
            (1, "term", (Kind.BALLOT,), "ballot"),
            (4, "promise", (Kind.PROMISED,), "epoch"),
            (4, "active epoch", (Kind.ACTIVE,), "epoch"),
            (5, "stored document", (Kind.STORED,), "version"),
        ):
            start_key = {"promise": "promised", "active epoch": "active", "stored document": "stored"}.get(
                name, key
            )
            highest: tuple[Numbers, Record] | None = None
            for record in (r for run in runs for r in run.of(Kind.STARTED, *kinds)):
                value = numbers(record.facts[start_key if record.kind == Kind.STARTED else key])
                if highest is not None and (value is None or value < highest[0]):
                    yield Violation(
                        invariant,
                        f"the {name} went back from {spelled(highest[0])} to {spelled(value)}",
                        (highest[1], record),
                    )
                if value is not None and (highest is None or value >= highest[0]):
                    highest = (value, record)


def check_committed(history: History) -> Iterator[Violation]:
    """A committed document stays: one per version, each with what the one before had, known to every later leader.

    An operator's forced recovery begins a generation and may give up what the older one committed, so documents
    are compared within a generation only.
    """
    versions: dict[Numbers, Record] = {}
    for record in history.of_kind(Kind.COMMITTED):
        version = numbers(record.facts["version"]) or ()
        first = versions.setdefault(version, record)
        if first.facts["document"] != record.facts["document"]:
            yield Violation(5, f"two documents of version {spelled(version)} are committed", (first, record))
    for (older, before), (newer, after) in itertools.pairwise(sorted(versions.items())):
        if older[0] == newer[0]:
            yield from _compare(before, after)
    yield from _check_leaders(history, versions)
    for run in history.runs:
        for before, after in itertools.pairwise(run.of(Kind.COMMITTED)):
            if (numbers(after.facts["version"]) or ()) < (numbers(before.facts["version"]) or ()):
                yield Violation(5, "a node's committed document went back", (before, after))


def _check_leaders(history: History, versions: dict[Numbers, Record]) -> Iterator[Violation]:
    for record in history.of_kind(Kind.LEADS):
        ballot = numbers(record.facts["ballot"]) or ()
        stored = numbers(record.facts["stored"]) or ()
        newest = max((v for v in versions if v[0] == ballot[0] and v[:2] < ballot), default=())
        if stored < newest:
            yield Violation(
                5,
                f"the coordinator of term {spelled(ballot)} was elected with document {spelled(stored)}, "
                f"but {spelled(newest)} was committed before",
                (versions[newest], record),
            )


def _compare(before: Record, after: Record) -> Iterator[Violation]:
    denied = set(after.facts["denied"])
    lost = set(before.facts["members"]) - set(after.facts["members"]) - denied
    if lost:
        yield Violation(5, f"the committed members {_short(lost)} were lost", (before, after))
    let_in = set(before.facts["denied"]) - denied
    if let_in:
        yield Violation(5, f"the denial of {_short(let_in)} was lost", (before, after))
    older, newer = numbers(before.facts["epoch"]), numbers(after.facts["epoch"])
    if older is not None and (newer is None or newer < older):
        yield Violation(
            5, f"the committed plan went back from {spelled(older)} to {spelled(newer)}", (before, after)
        )


def _short(nodes: set[str]) -> str:
    return ", ".join(sorted(node[:8] for node in nodes))
