"""Invariants 3 and 4: one worker at a time, and of no older epoch than the node's active one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.history import Numbers, Violation, is_local, numbers, spelled
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macmesh_daemon.eventlog.history import History, Run
    from macmesh_daemon.eventlog.records import Record


def check_workers(history: History) -> Iterator[Violation]:
    """A worker is started only when the one before is gone, and all are gone when the daemon ends in order.

    A daemon that is killed says nothing of its worker, which ends with it: a later start begins with none.
    """
    for run in history.runs:
        if not run.is_whole:
            continue
        running: Record | None = None
        for record in run.of(Kind.WORKER_STARTED, Kind.WORKER_STOPPED, Kind.ENDED):
            match record.kind:
                case Kind.WORKER_STARTED:
                    if running is not None:
                        epochs = (numbers(r.facts["epoch"]) for r in (running, record))
                        yield Violation(
                            3,
                            f"workers of epochs {' and '.join(map(spelled, epochs))} at once",
                            (running, record),
                        )
                    running = record
                case Kind.WORKER_STOPPED:
                    if running is not None and running.facts["epoch"] == record.facts["epoch"]:
                        running = None
                case _ if running is not None:
                    yield Violation(3, "the daemon ended before its worker", (running, record))


def check_epochs(history: History) -> Iterator[Violation]:
    """Promises, answers, workers and requests keep to the order of epochs."""
    # The coordinator's own copy of the document is durable before it asks anybody to COMMIT.
    stored = {numbers(record.facts["epoch"]) for record in history.of_kind(Kind.STORED, Kind.COMMITTED)}
    led = set() if history.gaps else {numbers(r.facts["ballot"]) for r in history.of_kind(Kind.LEADS)}
    for runs in history.nodes().values():
        last: dict[bool, tuple[Numbers, Record]] = {}
        for run in runs:
            if run.is_whole:
                yield from _check_run(run)
            for record in run.of(Kind.WORKER_STARTED):
                epoch = numbers(record.facts["epoch"]) or ()
                before = last.get(is_local(epoch))
                if before is not None and epoch <= before[0]:
                    yield Violation(
                        4,
                        f"a worker of epoch {spelled(epoch)} after one of {spelled(before[0])}",
                        (before[1], record),
                    )
                last[is_local(epoch)] = (epoch, record)
                if epoch[:2] in led and epoch not in stored:
                    yield Violation(
                        4, f"a worker of epoch {spelled(epoch)}, which no document has", (record,)
                    )


def _check_run(run: Run) -> Iterator[Violation]:  # noqa: C901, PLR0912  one case per kind of record
    promised: Numbers | None = None
    active: Numbers | None = None
    local: tuple[int, ...] = ()
    running: Numbers | None = None
    told: dict[str, Record] = {}
    for record in run.records:
        epoch = numbers(record.facts.get("epoch"))
        match record.kind:
            case Kind.STARTED:
                told = {"promised": record, "active": record}
                promised, active = numbers(record.facts["promised"]), numbers(record.facts["active"])
                local = (int(record.facts["local_seq"]),)
            case Kind.PROMISED:
                promised, told["promised"] = epoch, record
            case Kind.LOCAL:
                local = (int(record.facts["local_seq"]),)
            case Kind.ACTIVE:
                active, told["active"] = epoch, record
                if epoch is not None and (promised is None or epoch > promised):
                    yield Violation(
                        4, f"epoch {spelled(epoch)} is active, but not promised", _pair(told, record)
                    )
            case Kind.PREPARE_ANSWERED if record.facts["ok"] and epoch != promised:
                yield Violation(
                    4,
                    f"a promise of {spelled(epoch)} was given, that of {spelled(promised)} is durable",
                    _pair(told, record),
                )
            case Kind.COMMIT_ANSWERED if record.facts["ok"] and epoch != active:
                yield Violation(
                    4,
                    f"COMMIT of {spelled(epoch)} was confirmed, but {spelled(active)} is active",
                    (told["active"], record) if "active" in told else (record,),
                )
            case Kind.WORKER_STARTED if epoch is not None:
                running = epoch
                wanted = (0, epoch[1], *local) if is_local(epoch) else active
                if epoch != wanted:
                    yield Violation(
                        4,
                        f"a worker of epoch {spelled(epoch)} was started, but {spelled(wanted)} is durable",
                        (told["active"], record) if "active" in told else (record,),
                    )
            case Kind.WORKER_STOPPED if epoch == running:
                running = None
            case Kind.WORKER_READY if epoch != running:
                yield Violation(
                    4, f"a worker of epoch {spelled(epoch)} is ready, but none was started", (record,)
                )
            case Kind.RUN_STARTED if epoch != running:
                yield Violation(
                    4,
                    f"a request of epoch {spelled(epoch)} was run by the worker of {spelled(running)}",
                    (record,),
                )


def _pair(told: dict[str, Record], record: Record) -> tuple[Record, ...]:
    return (told["promised"], record) if "promised" in told else (record,)
