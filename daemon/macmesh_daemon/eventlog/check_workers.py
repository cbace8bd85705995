"""Invariants 3 and 4: one epoch and one process at a time, and of no older epoch than the node's active one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.eventlog.history import Numbers, Violation, is_local, numbers, spelled
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from macmesh_daemon.eventlog.history import History, Run
    from macmesh_daemon.eventlog.records import Record


_LIFE = (
    Kind.WORKER_STARTED,
    Kind.WORKER_RUNS,
    Kind.WORKER_STOPPED,
    Kind.WORKER_RESTS,
    Kind.WORKER_DISMISSED,
    Kind.ENDED,
)


def check_workers(history: History) -> Iterator[Violation]:
    """An epoch begins only when the one before has ended, and all is gone when the daemon ends in order.

    One process may serve epochs one after the other: it rests between them, and meanwhile no other one runs. A daemon
    that is killed says nothing of its worker, which ends with it: a later start begins with none.
    """
    for run in history.runs:
        if run.is_whole:
            yield from _check_processes(run)


def _check_processes(run: Run) -> Iterator[Violation]:  # noqa: C901  one case per kind of record
    running: Record | None = None
    runs: Record | None = None
    resting: Record | None = None
    for record in run.of(*_LIFE):
        match record.kind:
            case Kind.WORKER_STARTED:
                if running is not None:
                    epochs = (numbers(r.facts["epoch"]) for r in (running, record))
                    yield Violation(
                        3,
                        f"workers of epochs {' and '.join(map(spelled, epochs))} at once",
                        (running, record),
                    )
                running, runs = record, None
            case Kind.WORKER_RUNS:
                yield from _check_process(resting, record)
                resting, runs = None, record
            case Kind.WORKER_STOPPED | Kind.WORKER_RESTS:
                if running is None or running.facts["epoch"] != record.facts["epoch"]:
                    continue
                if record.kind == Kind.WORKER_RESTS:
                    if runs is not None and runs.facts["pid"] != record.facts["pid"]:
                        yield Violation(3, "another process rests than the one that ran", (runs, record))
                    resting = record
                elif runs is None:
                    resting = None  # it was to take this epoch up, and ended before it did
                running = None
            case Kind.WORKER_DISMISSED if resting is not None:
                resting = None if resting.facts["pid"] == record.facts["pid"] else resting
            case Kind.ENDED:
                left = running or resting
                if left is not None:
                    yield Violation(3, "the daemon ended before its worker", (left, record))


def _check_process(resting: Record | None, runs: Record) -> Iterator[Violation]:
    """A process that rests runs next, or is gone by then."""
    if resting is None:
        if runs.facts.get("process") == "kept":
            yield Violation(3, f"process {runs.facts['pid']} is said to be kept, but none rested", (runs,))
    elif resting.facts["pid"] != runs.facts["pid"]:
        pids = f"{resting.facts['pid']} and {runs.facts['pid']}"
        yield Violation(3, f"worker processes {pids} at once", (resting, runs))


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
            case Kind.WORKER_STOPPED | Kind.WORKER_RESTS if epoch == running:
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
