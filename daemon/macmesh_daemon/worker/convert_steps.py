"""Between the control lane's messages and the head's schedule, both ways and without loss."""

from collections.abc import Callable
from typing import Any

from macmesh.v1 import lane_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.steps import (
    Close,
    Compose,
    Forget,
    Open,
    Operation,
    Reuse,
    Row,
    Sampled,
    Step,
    StepDone,
    StepKind,
)
from macmesh_daemon.worker.convert import sampling_from_wire, sampling_to_wire

_KINDS: dict[StepKind, lane_pb2.StepKind.ValueType] = {
    "prefill": lane_pb2.STEP_KIND_PREFILL,
    "decode": lane_pb2.STEP_KIND_DECODE,
    "operations": lane_pb2.STEP_KIND_OPERATIONS,
}
_NAMES: dict[int, StepKind] = {number: kind for kind, number in _KINDS.items()}


def step_to_wire(step: Step) -> lane_pb2.Step:
    """A step for the other stages."""
    return lane_pb2.Step(
        number=step.number,
        kind=_KINDS[step.kind],
        operations=[_operation_to_wire(operation) for operation in step.operations],
        rows=[
            lane_pb2.StepRow(
                slot=row.slot,
                request_id=row.request_id,
                offset=row.offset,
                token=row.token,
                sample_index=row.sample_index,
            )
            for row in step.rows
        ],
        tokens=step.tokens,
        batch=step.batch,
    )


def step_from_wire(message: lane_pb2.Step) -> Step:
    """A step as the head decided it.

    Raises:
        RemoteScheduleError: it is none.
    """
    kind = _NAMES.get(message.kind)
    if kind is None:
        raise RemoteScheduleError(f"step {message.number} is of no kind that this version knows")
    rows = tuple(
        Row(
            slot=row.slot,
            request_id=row.request_id,
            offset=row.offset,
            token=row.token if row.HasField("token") else None,
            sample_index=row.sample_index,
        )
        for row in message.rows
    )
    wanted = {"prefill": len(rows) == 1, "decode": len(rows) > 0, "operations": not rows}[kind]
    if not wanted or (kind == "prefill") != bool(message.tokens):
        raise RemoteScheduleError(
            f"step {message.number} is a {kind} step of {len(rows)} rows and {len(message.tokens)} tokens"
        )
    return Step(
        number=message.number,
        kind=kind,
        operations=tuple(_operation_from_wire(operation) for operation in message.operations),
        rows=rows,
        tokens=tuple(message.tokens),
        batch=message.batch if message.HasField("batch") else None,
    )


def done_to_wire(done: StepDone) -> lane_pb2.StepDone:
    """A step's result for the head."""
    return lane_pb2.StepDone(
        number=done.number,
        sampled=[lane_pb2.SampledToken(token=one.token, logprob=one.logprob) for one in done.sampled],
        seconds=done.seconds,
    )


def done_from_wire(message: lane_pb2.StepDone) -> StepDone:
    """A step's result."""
    return StepDone(
        message.number, tuple(Sampled(one.token, one.logprob) for one in message.sampled), message.seconds
    )


def _operation_to_wire(operation: Operation) -> lane_pb2.StepOperation:
    match operation:
        case Open():
            opened = lane_pb2.OpenSlot(
                slot=operation.slot,
                request_id=operation.request_id,
                reserve_tokens=operation.reserve_tokens,
                sampling=sampling_to_wire(operation.sampling),
                history=operation.history,
            )
            if operation.reuse is not None:
                opened.reuse.entry = operation.reuse.entry
                opened.reuse.tokens = operation.reuse.tokens
                opened.reuse.SetInParent()
            return lane_pb2.StepOperation(open=opened)
        case Compose(batch, slots, capacity_tokens):
            compose = lane_pb2.ComposeBatch(batch=batch, slots=slots, capacity_tokens=capacity_tokens)
            return lane_pb2.StepOperation(compose=compose)
        case Close():
            close = lane_pb2.CloseSlot(
                slot=operation.slot,
                request_id=operation.request_id,
                keep_as=operation.keep_as,
                keep_tokens=operation.keep_tokens,
                keep_reserve_tokens=operation.keep_reserve_tokens,
            )
            return lane_pb2.StepOperation(close=close)
        case Forget(entry):
            return lane_pb2.StepOperation(forget=lane_pb2.ForgetEntry(entry=entry))


def _open_from_wire(message: lane_pb2.OpenSlot) -> Open:
    return Open(
        slot=message.slot,
        request_id=message.request_id,
        reserve_tokens=message.reserve_tokens,
        sampling=sampling_from_wire(message.sampling),
        history=tuple(message.history),
        reuse=Reuse(message.reuse.entry, message.reuse.tokens) if message.HasField("reuse") else None,
    )


def _compose_from_wire(message: lane_pb2.ComposeBatch) -> Compose:
    return Compose(message.batch, tuple(message.slots), message.capacity_tokens)


def _close_from_wire(message: lane_pb2.CloseSlot) -> Close:
    keep_as = message.keep_as if message.HasField("keep_as") else None
    return Close(
        slot=message.slot,
        request_id=message.request_id,
        keep_as=keep_as,
        keep_tokens=message.keep_tokens,
        keep_reserve_tokens=message.keep_reserve_tokens,
    )


def _forget_from_wire(message: lane_pb2.ForgetEntry) -> Forget:
    return Forget(message.entry)


_OPERATIONS: dict[str | None, Callable[[Any], Operation]] = {
    "open": _open_from_wire,
    "compose": _compose_from_wire,
    "close": _close_from_wire,
    "forget": _forget_from_wire,
}


def _operation_from_wire(message: lane_pb2.StepOperation) -> Operation:
    name = message.WhichOneof("operation")
    build = _OPERATIONS.get(name)
    if name is None or build is None:
        raise RemoteScheduleError("a step has an operation that this version does not know")
    return build(getattr(message, name))
