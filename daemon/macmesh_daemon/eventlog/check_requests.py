"""Invariant 6: a request ends once, and its tokens are delivered once, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.history import Violation
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macmesh_daemon.eventlog.history import History, Run
    from macmesh_daemon.eventlog.records import Record

_ENDS = (Kind.FINISHED, Kind.CANCELLED, Kind.FAILED)


@dataclass(slots=True)
class _Request:
    accepted: Record
    last: Record
    tokens: int = 0
    end: Record | None = None


def check_requests(history: History) -> Iterator[Violation]:
    """Check every request of every API node.

    A request of a daemon that was killed, or that runs still, may have no end in its log.
    """
    first: dict[str, Record] = {}
    for record in history.of_kind(Kind.ACCEPTED):
        before = first.setdefault(record.facts["request"], record)
        if before is not record:
            yield Violation(6, f"request {record.facts['request']} was accepted twice", (before, record))
    for run in history.runs:
        yield from _check_run(run)


def _check_run(run: Run) -> Iterator[Violation]:  # noqa: C901, PLR0912  one case per kind of record
    requests: dict[str, _Request] = {}
    for record in run.of(Kind.ACCEPTED, Kind.DELIVERED, *_ENDS):
        request_id = str(record.facts["request"])
        if record.kind == Kind.ACCEPTED:
            requests[request_id] = _Request(record, record)
            continue
        request = requests.get(request_id)
        if request is None:
            if run.is_whole:
                yield Violation(6, f"request {request_id} was served, but never accepted", (record,))
            continue
        if request.end is not None:
            what = "ended twice" if record.kind in _ENDS else "was delivered tokens after its end"
            yield Violation(6, f"request {request_id} {what}", (request.end, record))
        elif record.kind == Kind.DELIVERED:
            index, count = int(record.facts["index"]), int(record.facts["count"])
            if run.is_whole and index != request.tokens:
                what = "twice" if index < request.tokens else "out of order"
                yield Violation(
                    6,
                    f"tokens of request {request_id} were delivered {what}: "
                    f"token {index} came where {request.tokens} was due",
                    (request.last, record),
                )
            request.tokens, request.last = index + count, record
        else:
            request.end = record
            tokens = int(record.facts["tokens"])
            if run.is_whole and tokens != request.tokens:
                yield Violation(
                    6,
                    f"request {request_id} ended with {tokens} tokens, {request.tokens} were delivered",
                    (request.last, record),
                )
            if record.kind == Kind.FAILED and not record.facts["reason"]:
                yield Violation(6, f"request {request_id} failed without a reason", (record,))
    if run.has_ended and run.is_whole:
        for request_id, request in requests.items():
            if request.end is None:
                yield Violation(
                    6,
                    f"request {request_id} never ended, but its daemon did",
                    (request.accepted, run.records[-1]),
                )
