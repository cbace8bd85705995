"""Invariant 6: a request ends once, and its tokens are delivered once, in order.

A request may be accepted several times: by one API node first (attempt 0), and by others, or the same one, when its
client takes it up. Each acceptance begins with the tokens that the client brought, and each has its end. Within an
acceptance there are runs, one after the other, each behind the last token.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.history import Numbers, Violation, is_local, numbers, spelled
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from macmesh_daemon.eventlog.history import History, Run
    from macmesh_daemon.eventlog.records import Record

_ENDS = (Kind.FINISHED, Kind.CANCELLED, Kind.FAILED)


@dataclass(slots=True)
class _Acceptance:
    """What one API node did for a request."""

    accepted: Record
    is_whole: bool
    """Nothing between its records is missing."""
    tokens: int
    """Delivered, those that the client brought included."""
    last: Record
    run: Record | None = None
    """The run that is believed."""
    newest: Record | None = None
    """The last run, believed or not."""
    end: Record | None = None

    @property
    def attempt(self) -> int:
        return int(self.accepted.facts.get("attempt", 0))

    @property
    def brought(self) -> int:
        return int(self.accepted.facts.get("resumed_from", 0))

    @property
    def is_known(self) -> bool:
        """Whether what it delivered is on record to the last token."""
        return self.is_whole and self.end is not None


def check_requests(history: History) -> Iterator[Violation]:
    """Check every request of every API node.

    A request of a daemon that was killed, or that runs still, may have no end in its log.
    """
    acceptances: dict[str, list[_Acceptance]] = defaultdict(list)
    for run in history.runs:
        yield from _check_run(run, acceptances)
    for request_id, found in acceptances.items():
        yield from _check_attempts(request_id, found)


def _check_run(run: Run, acceptances: dict[str, list[_Acceptance]]) -> Iterator[Violation]:
    requests: dict[str, _Acceptance] = {}
    for record in run.of(Kind.ACCEPTED, Kind.RUN_ASKED, Kind.RUN_LOST, Kind.DELIVERED, *_ENDS):
        request_id = str(record.facts["request"])
        request = requests.get(request_id)
        if record.kind == Kind.ACCEPTED:
            if request is not None and request.end is None and run.is_whole:
                yield Violation(
                    6, f"request {request_id} was accepted before it ended", (request.accepted, record)
                )
            brought = int(record.facts.get("resumed_from", 0))
            requests[request_id] = accepted = _Acceptance(record, run.is_whole, brought, record)
            acceptances[request_id].append(accepted)
        elif request is None:
            if run.is_whole:
                yield Violation(6, f"request {request_id} was served, but never accepted", (record,))
        elif request.end is not None:
            what = "ended twice" if record.kind in _ENDS else "was served after its end"
            yield Violation(6, f"request {request_id} {what}", (request.end, record))
        else:
            yield from _take(request_id, request, record)
    if run.has_ended and run.is_whole:
        for request_id, request in requests.items():
            if request.end is None:
                yield Violation(
                    6,
                    f"request {request_id} never ended, but its daemon did",
                    (request.accepted, run.records[-1]),
                )


def _take(request_id: str, request: _Acceptance, record: Record) -> Iterator[Violation]:
    """Judge one record of an acceptance by those before it."""
    match record.kind:
        case Kind.RUN_ASKED:
            if request.is_whole:
                yield from _check_asked(request_id, request, record)
            request.run = request.newest = record
        case Kind.RUN_LOST:
            if request.is_whole and (request.run is None or request.run.facts["run"] != record.facts["run"]):
                yield Violation(6, f"request {request_id} lost a run that it did not have", (record,))
            request.run = None
        case Kind.DELIVERED:
            yield from _check_delivered(request_id, request, record)
            request.tokens = int(record.facts["index"]) + int(record.facts["count"])
            request.last = record
        case _:
            request.end = record
            tokens = int(record.facts["tokens"])
            if request.is_whole and tokens != request.tokens:
                yield Violation(
                    6,
                    f"request {request_id} ended with {tokens} tokens, {request.tokens} were delivered",
                    (request.last, record),
                )
            if record.kind == Kind.FAILED and not record.facts["reason"]:
                yield Violation(6, f"request {request_id} failed without a reason", (record,))


def _check_asked(request_id: str, request: _Acceptance, record: Record) -> Iterator[Violation]:
    first = int(record.facts["first"])
    if request.run is not None:
        yield Violation(6, f"request {request_id} has two runs at once", (request.run, record))
    before = numbers(request.newest.facts["epoch"]) if request.newest is not None else None
    if request.newest is not None and before is not None and _is_older(record, before):
        yield Violation(
            4,
            f"request {request_id} was run under epoch {spelled(numbers(record.facts['epoch']))} "
            f"after {spelled(before)}",
            (request.newest, record),
        )
    if first != request.tokens:
        yield Violation(
            6,
            f"a run of request {request_id} was asked for from token {first} on, "
            f"{request.tokens} were delivered",
            (request.last, record),
        )


def _is_older(record: Record, epoch: Numbers) -> bool:
    """Whether a record names an older epoch of the same lineage: a node's own and a cluster's take turns."""
    own = numbers(record.facts["epoch"])
    return own is not None and is_local(own) == is_local(epoch) and own < epoch


def _check_delivered(request_id: str, request: _Acceptance, record: Record) -> Iterator[Violation]:
    if not request.is_whole:
        return
    index = int(record.facts["index"])
    if index != request.tokens:
        what = "twice" if index < request.tokens else "out of order"
        yield Violation(
            6,
            f"tokens of request {request_id} were delivered {what}: "
            f"token {index} came where {request.tokens} was due",
            (request.last, record),
        )
    if request.run is None:
        yield Violation(
            6,
            f"token {index} of request {request_id} was delivered while no run of it was believed",
            (request.last, record),
        )


def _check_attempts(request_id: str, found: Sequence[_Acceptance]) -> Iterator[Violation]:
    """Judge the acceptances of one request by each other; clocks of different nodes say nothing here."""
    ordered = sorted(found, key=lambda one: one.attempt)
    for before, after in itertools.pairwise(ordered):
        pair = (before.accepted, after.accepted)
        if before.attempt == after.attempt:
            yield Violation(6, f"request {request_id} was accepted twice as attempt {after.attempt}", pair)
        if after.brought < before.brought:
            yield Violation(
                6,
                f"the client of request {request_id} brought {before.brought} tokens first and "
                f"{after.brought} later: it would get some twice",
                pair,
            )
    # A try without its acceptance may have been refused, or its log was not given.
    is_known, delivered = True, 0
    for number, one in enumerate(ordered):
        is_known = is_known and one.attempt == number
        if is_known and one.attempt and one.brought > delivered:
            yield Violation(
                6,
                f"the client of request {request_id} brought {one.brought} tokens, "
                f"of which {delivered} were delivered to it",
                (one.accepted,),
            )
        is_known = is_known and one.is_known
        delivered = max(delivered, one.tokens)
