"""Everything that one stage caches: requests in their slots, batches of them, and entries kept for later ones.

It carries out the operations of the head's steps and nothing else, so that all stages hold the same.
"""

import dataclasses
from collections.abc import Callable
from typing import TypeVar

from macmesh_daemon.engine.batch_caches import BatchCaches, BatchRow, compose
from macmesh_daemon.engine.cache_snapshot import Snapshot
from macmesh_daemon.engine.caches import StageCaches
from macmesh_daemon.engine.errors import LocalStageError, RemoteScheduleError
from macmesh_daemon.engine.steps import Close, Compose, Forget, Open, Operation, Row, Step

_T = TypeVar("_T")


@dataclasses.dataclass
class _Slot:
    request_id: str
    caches: StageCaches | None
    """None: a row of the batch."""
    batch: int | None = None


@dataclasses.dataclass
class _Leaving:
    slot: int
    keep_as: int | None
    keep_tokens: int


@dataclasses.dataclass
class _Batch:
    caches: BatchCaches
    slots: tuple[int, ...]
    leaving: list[_Leaving] = dataclasses.field(default_factory=list)
    """Rows that have been closed; the next `Compose` takes them out."""


class CacheHouse:
    """One stage's slots, batches and entries. To be used from the stage's thread."""

    def __init__(self, make: Callable[[int], StageCaches], slots: int) -> None:
        """Begins empty.

        Args:
            make: Makes a request's caches for a number of tokens.
            slots: Most requests at a time; slots have the numbers below that.
        """
        self._make = make
        self._slot_count = slots
        self._slots: dict[int, _Slot] = {}
        self._batches: dict[int, _Batch] = {}
        self._entries: dict[int, StageCaches] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that all caches hold."""
        alone = [slot.caches for slot in self._slots.values() if slot.caches is not None]
        batches = sum(batch.caches.nbytes for batch in self._batches.values())
        return batches + sum(caches.nbytes for caches in (*alone, *self._entries.values()))

    def apply(self, operation: Operation) -> None:
        """Carries out one operation.

        Raises:
            RemoteScheduleError: it does not fit what is there; nothing has been changed.
        """
        match operation:
            case Open():
                self._open(operation)
            case Compose():
                self._compose(operation)
            case Close():
                self._close(operation)
            case Forget():
                _of(self._entries, operation.entry, "entry")
                del self._entries[operation.entry]

    def caches_for(self, step: Step) -> StageCaches | BatchCaches:
        """The caches that a step computes with, after its operations.

        Raises:
            RemoteScheduleError: the step's rows are not what is there.
        """
        if not step.rows or (step.kind != "decode" and len(step.rows) > 1):
            raise RemoteScheduleError(f"step {step.number} ({step.kind}) cannot have {len(step.rows)} rows")
        if step.batch is not None:
            return self._batch_for(step, step.batch)
        if len(step.rows) > 1:
            raise RemoteScheduleError(f"step {step.number} has {len(step.rows)} rows and names no batch")
        row = step.rows[0]
        slot = self._slot(row.slot, row.request_id)
        if slot.caches is None:
            raise RemoteScheduleError(
                f"step {step.number} runs slot {row.slot} alone, a row of batch {slot.batch}"
            )
        _require_offset(step, row, slot.caches.length)
        return slot.caches

    def _batch_for(self, step: Step, number: int) -> BatchCaches:
        batch = _of(self._batches, number, "batch")
        named = tuple(row.slot for row in step.rows)
        if batch.leaving or named != batch.slots:
            raise RemoteScheduleError(
                f"step {step.number} has the slots {list(named)} for batch {number}, whose rows are "
                f"{list(batch.slots)}, {len(batch.leaving)} of them closed"
            )
        for row, length in zip(step.rows, batch.caches.lengths, strict=True):
            self._slot(row.slot, row.request_id)
            _require_offset(step, row, length)
        return batch.caches

    def snapshot(self, step: Step) -> Snapshot:
        """State of the caches of a step that is about to be described.

        Raises:
            RemoteScheduleError: as `caches_for`.
        """
        return Snapshot(self.caches_for(step))

    def _open(self, opened: Open) -> None:
        if not 0 <= opened.slot < self._slot_count:
            raise RemoteScheduleError(f"slot {opened.slot} is none of the {self._slot_count}")
        if opened.slot in self._slots:
            raise RemoteScheduleError(
                f"slot {opened.slot} is held by request {self._slots[opened.slot].request_id}, "
                f"not free for {opened.request_id}"
            )
        if any(slot.request_id == opened.request_id for slot in self._slots.values()):
            raise RemoteScheduleError(f"request {opened.request_id} has a slot already")
        if opened.reserve_tokens < 1:
            raise RemoteScheduleError(f"request {opened.request_id} reserves {opened.reserve_tokens} tokens")
        if opened.reuse is None:
            caches = self._make(opened.reserve_tokens)
        else:
            number, tokens = opened.reuse.entry, opened.reuse.tokens
            entry = _of(self._entries, number, "entry")
            _require_cut(entry, tokens, f"entry {number}")
            if tokens > opened.reserve_tokens:
                raise RemoteScheduleError(
                    f"{tokens} tokens of entry {number} do not fit the {opened.reserve_tokens} that request "
                    f"{opened.request_id} reserves"
                )
            del self._entries[number]
            entry.trim_to(tokens)
            caches = _with_room(entry, opened.reserve_tokens)
        self._slots[opened.slot] = _Slot(opened.request_id, caches)

    def _close(self, closed: Close) -> None:
        slot = self._slot(closed.slot, closed.request_id)
        batch = None if slot.batch is None else self._batches[slot.batch]
        if closed.keep_as is not None:
            if closed.keep_as in self._kept():
                raise RemoteScheduleError(f"entry {closed.keep_as} is there already")
            row: StageCaches | BatchRow | None = slot.caches
            if batch is not None:
                row = BatchRow(batch.caches, batch.slots.index(closed.slot))
            if row is not None:
                _require_cut(row, closed.keep_tokens, f"request {closed.request_id}")
        del self._slots[closed.slot]
        if batch is not None:
            batch.leaving.append(_Leaving(closed.slot, closed.keep_as, closed.keep_tokens))
        elif closed.keep_as is not None and slot.caches is not None:
            slot.caches.trim_to(closed.keep_tokens)
            reserve_tokens = max(closed.keep_reserve_tokens, closed.keep_tokens)
            self._entries[closed.keep_as] = _with_room(slot.caches, reserve_tokens)

    def _kept(self) -> set[int]:
        promised = {row.keep_as for batch in self._batches.values() for row in batch.leaving}
        return self._entries.keys() | {number for number in promised if number is not None}

    def _compose(self, composed: Compose) -> None:
        old = self._batches.get(composed.batch)
        rows = self._rows_of(composed, old)
        keeps = [row for row in old.leaving if row.keep_as is not None] if old else []
        leaving = [BatchRow(old.caches, old.slots.index(row.slot)) for row in keeps] if old else []
        if rows or leaving:
            try:
                made = compose(rows, composed.capacity_tokens, leaving, [row.keep_tokens for row in keeps])
            except LocalStageError as error:
                raise RemoteScheduleError(f"batch {composed.batch} cannot be composed: {error}") from error
            for keep, entry in zip(keeps, made.leaving, strict=True):
                if keep.keep_as is not None:
                    self._entries[keep.keep_as] = entry
        self._batches.pop(composed.batch, None)
        if rows and made.batch is not None:
            self._batches[composed.batch] = _Batch(made.batch, composed.slots)
            for number in composed.slots:
                self._slots[number].caches, self._slots[number].batch = None, composed.batch

    def _rows_of(self, composed: Compose, old: _Batch | None) -> list[BatchRow]:
        """Where the rows of the batch come from, checked."""
        where = f"batch {composed.batch}"
        if old is None and not composed.slots:
            raise RemoteScheduleError(f"{where} is not there, so it cannot end")
        if len(set(composed.slots)) != len(composed.slots):
            raise RemoteScheduleError(f"{where} names a slot twice: {list(composed.slots)}")
        staying = [slot for slot in old.slots if slot not in {row.slot for row in old.leaving}] if old else []
        if list(composed.slots[: len(staying)]) != staying:
            raise RemoteScheduleError(
                f"{where} is to have the slots {list(composed.slots)}, but {staying} stay in it and come first"
            )
        rows = [BatchRow(old.caches, old.slots.index(slot)) for slot in staying] if old else []
        for number in composed.slots[len(staying) :]:
            slot = _of(self._slots, number, "slot")
            if slot.caches is None:
                raise RemoteScheduleError(
                    f"slot {number} is to join {where} but is a row of batch {slot.batch}"
                )
            rows.append(BatchRow(slot.caches))
        return rows

    def _slot(self, number: int, request_id: str) -> _Slot:
        slot = _of(self._slots, number, "slot")
        if slot.request_id != request_id:
            raise RemoteScheduleError(f"slot {number} is held by request {slot.request_id}, not {request_id}")
        return slot


def _with_room(caches: StageCaches, reserve_tokens: int) -> StageCaches:
    """Caches for so many tokens; those that are, as they are: where there is no room to convert them they stay so."""
    return caches if caches.reserve_tokens == reserve_tokens else caches.resized(reserve_tokens)


def _of(found: dict[int, _T], number: int, kind: str) -> _T:
    if number not in found:
        raise RemoteScheduleError(f"{kind} {number} is not there; there are {sorted(found)}")
    return found[number]


def _require_cut(caches: StageCaches | BatchRow, tokens: int, what: str) -> None:
    if tokens < 1 or not caches.can_trim_to(tokens):
        raise RemoteScheduleError(
            f"{what} has {caches.length} tokens, which cannot be cut to {tokens}: the caches of this model can "
            f"be cut up to a length of {caches.trim_below_tokens}"
        )


def _require_offset(step: Step, row: Row, length: int) -> None:
    if row.offset != length:
        raise RemoteScheduleError(
            f"step {step.number} runs slot {row.slot} at offset {row.offset}, but its caches hold {length} tokens"
        )
