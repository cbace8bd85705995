"""Runs a drill: a stream undisturbed, the same again with the fault in its middle, and all the times."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh.errors import MacmeshError
from macmesh.types import epoch_text
from macmesh.v1 import cluster_pb2, peer_pb2
from macmesh_daemon.drill.report import DrillReport, Kind
from macmesh_daemon.drill.tokens import compare

if TYPE_CHECKING:
    from macmesh import ClusterEvent, ClusterStatus
    from macmesh_daemon.drill.target import Target

#: A coordinator tells these when it has noticed. Another node's watcher sees it by the status, twice a second.
_NOTICED = frozenset({"worker ended", "drain begun", "leadership handed over", "coordinator followed"})


class DrillError(Exception):
    """A drill could not be made; nothing was judged. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Drill:
    """What to rehearse.

    Attributes:
        kind: The fault.
        node_id: Where.
        prompt: Of the streams.
        max_tokens: Of each.
        fault_after_tokens: So many tokens into the second one.
        timeout_seconds: Longest wait for the stream's end, and after it until the cluster serves again.
    """

    kind: Kind
    node_id: str
    prompt: str
    max_tokens: int
    fault_after_tokens: int
    timeout_seconds: float


@dataclass(slots=True)
class _Stream:
    """A disturbed stream, as it came."""

    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    error: str = ""
    ended_at: float | None = None
    is_due: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True)
class _Seen:
    """What the watcher saw since the fault."""

    old_epoch: str
    noticed_at: float | None = None
    plan_at: float | None = None
    ready_at: float | None = None
    epoch: str = ""
    loaded_bytes: dict[str, int] = field(default_factory=dict)
    is_ready: asyncio.Event = field(default_factory=asyncio.Event)


async def rehearse(target: Target, drill: Drill) -> DrillReport:
    """Make the fault and report; a drain is undone afterwards.

    Raises:
        DrillError: The cluster is in no state for it.
        MacmeshError: The fault was refused, or the undisturbed stream failed.
    """
    clock = asyncio.get_running_loop().time
    before = await target.status()
    if before.serving_state != "ready":
        raise DrillError(f"the cluster is {before.serving_state}, not ready: load a model first")
    expected = await _undisturbed(target, drill)
    stream, seen = _Stream(), _Seen(epoch_text(before.document.plan.epoch))
    failure: MacmeshError | DrillError | None = None
    done, fault_at = "", 0.0
    async with asyncio.TaskGroup() as tasks:
        streaming = tasks.create_task(_follow_stream(target, drill, stream), name="drill stream")
        await stream.is_due.wait()
        fault_at = clock()
        watching = tasks.create_task(_watch(target, seen), name="drill watch")
        try:
            _check_runs(stream)
            done = await _make_fault(target, drill)
            await _within(drill.timeout_seconds, streaming)
            await _is_ready_in_time(seen, drill.timeout_seconds)
        except (MacmeshError, DrillError) as error:
            failure = error
        finally:
            streaming.cancel()
            watching.cancel()
    if failure is not None:
        raise failure
    first_at = await _first_token_after(target, drill, stream, seen)
    if drill.kind == "drain":
        await target.drain(drill.node_id, undo=True)

    def since(at: float | None) -> float | None:
        return None if at is None else max(0.0, at - fault_at)

    return DrillReport(
        drill.kind,
        drill.node_id,
        done,
        since(seen.noticed_at),
        since(seen.plan_at),
        since(seen.ready_at),
        since(first_at),
        _longest_pause(stream, fault_at),
        compare(expected, stream.tokens),
        stream.error,
        seen.epoch,
        seen.loaded_bytes,
    )


def _check_runs(stream: _Stream) -> None:
    if stream.ended_at is not None:
        how = stream.error or "all tokens came"
        raise DrillError(f"the stream ended before the fault ({how}): ask for more tokens")


async def _undisturbed(target: Target, drill: Drill) -> list[int]:
    tokens: list[int] = []
    async with aclosing(target.generate(drill.prompt, drill.max_tokens)) as responses:
        async for some in responses:
            tokens.extend(some)
    if len(tokens) <= drill.fault_after_tokens:
        raise DrillError(f"the undisturbed stream gave {len(tokens)} tokens: too few for a fault within it")
    return tokens


async def _follow_stream(target: Target, drill: Drill, stream: _Stream) -> None:
    clock = asyncio.get_running_loop().time
    try:
        async with aclosing(target.generate(drill.prompt, drill.max_tokens)) as responses:
            async for some in responses:
                stream.tokens.extend(some)
                stream.times.extend([clock()] * len(some))
                if len(stream.tokens) >= drill.fault_after_tokens:
                    stream.is_due.set()
    except MacmeshError as error:
        stream.error = f"{error.reason}: {error.message}" if error.reason else error.message
    except asyncio.CancelledError:
        stream.error = "it went on neither with a token nor with an error, in time"
        raise
    finally:
        stream.ended_at = clock()
        stream.is_due.set()


async def _make_fault(target: Target, drill: Drill) -> str:
    if drill.kind != "drain":
        return await target.fault(drill.kind, drill.node_id)
    await target.drain(drill.node_id, undo=False)
    return "asked for its drain"


async def _within(seconds: float, task: asyncio.Task[None]) -> None:
    await asyncio.wait({task}, timeout=seconds)


async def _is_ready_in_time(seen: _Seen, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await seen.is_ready.wait()
    except TimeoutError:
        pass


async def _watch(target: Target, seen: _Seen) -> None:
    """Note what is told until the cluster serves under another epoch; a watch that breaks is begun anew."""
    clock = asyncio.get_running_loop().time
    while not seen.is_ready.is_set():
        try:
            async with aclosing(target.watch()) as updates:
                async for update in updates:
                    if isinstance(update, cluster_pb2.GetStatusResponse):
                        _note_status(seen, update, clock())
                    else:
                        _note_event(seen, update, clock())
                    if seen.is_ready.is_set():
                        return
        except MacmeshError:
            if seen.noticed_at is None:
                seen.noticed_at = clock()


def _note_event(seen: _Seen, event: ClusterEvent, now: float) -> None:
    if event.event in _NOTICED and seen.noticed_at is None:
        seen.noticed_at = now
    is_new = str(event.facts.get("epoch", seen.old_epoch)) != seen.old_epoch
    if event.event == "plan committed" and is_new and seen.plan_at is None:
        seen.plan_at = now
    if event.event == "plan ready" and is_new and seen.ready_at is None:
        seen.ready_at = now


def _note_status(seen: _Seen, status: ClusterStatus, now: float) -> None:
    epoch = epoch_text(status.document.plan.epoch)
    failed = any(node.worker.state == peer_pb2.WORKER_STATE_FAILED for node in status.nodes)
    amiss = failed or status.serving_state != "ready" or any(node.drain for node in status.nodes)
    if seen.noticed_at is None and (amiss or epoch != seen.old_epoch):
        seen.noticed_at = now
    if epoch == seen.old_epoch or not status.document.plan.deployments:
        return
    seen.epoch = epoch
    seen.plan_at = now if seen.plan_at is None else seen.plan_at
    if status.serving_state == "ready":
        seen.ready_at = now if seen.ready_at is None else seen.ready_at
        seen.loaded_bytes = {
            # A worker may have kept some from the plan before.
            node.member.node_id: node.worker.loaded_bytes - getattr(node.worker, "kept_bytes", 0)
            for node in status.nodes
            if node.HasField("stage") and epoch_text(node.worker.epoch) == epoch
        }
        seen.is_ready.set()


async def _first_token_after(target: Target, drill: Drill, stream: _Stream, seen: _Seen) -> float | None:
    """When the first token under the new plan came; asks for one where the stream was lost before it."""
    if seen.plan_at is None or seen.ready_at is None:
        return None
    since = seen.plan_at
    own = next((at for at in stream.times if at >= since), None)
    if own is not None:
        return own
    try:
        async with (
            asyncio.timeout(drill.timeout_seconds),
            aclosing(target.generate(drill.prompt, 1)) as responses,
        ):
            async for some in responses:
                if some:
                    return asyncio.get_running_loop().time()
    except (MacmeshError, TimeoutError):
        return None
    return None


def _longest_pause(stream: _Stream, fault_at: float) -> float | None:
    """Between two tokens, the last one before the fault included; up to the end where the stream was lost."""
    before = [at for at in stream.times if at < fault_at][-1:]
    after = [at for at in stream.times if at >= fault_at]
    ends = [stream.ended_at] if stream.error and stream.ended_at is not None else []
    times = [*before, *after, *ends]
    return max((b - a for a, b in itertools.pairwise(times)), default=None)
