"""A cluster of three nodes that takes drills, in the caller's loop and by its clock."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from macmesh import ClusterEvent
from macmesh.errors import RemoteError
from macmesh.v1 import cluster_pb2, peer_pb2, types_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

Fate = Literal["goes on", "lost", "skips", "repeats", "differs", "hangs"]

NODE_IDS = ("aaaaaaaa01", "bbbbbbbb02", "cccccccc03")
LOADED_BYTES = 5_000_000


def fake_tokens(count: int) -> list[int]:
    """The greedy answer to every prompt."""
    return [100 + 7 * i % 50 for i in range(count)]


@dataclass
class FakeCluster:
    """See `macmesh_daemon.drill.target.Target`.

    Attributes:
        fate: What becomes of a stream under way when a fault comes.
        recovers: Whether a new plan is made.
        tells_events: Whether the node asked is the coordinator, whose watcher hears of every decision.
        refusal: What a fault is refused with.
        token_seconds: Between two tokens.
        detect_seconds: From a fault until it is noticed; then plan and load follow.
        plan_seconds: From that to the plan's commit.
        load_seconds: From that until it is ready.
    """

    fate: Fate = "goes on"
    recovers: bool = True
    tells_events: bool = True
    refusal: RemoteError | None = None
    token_seconds: float = 0.1
    detect_seconds: float = 0.2
    plan_seconds: float = 0.3
    load_seconds: float = 1.5
    calls: list[tuple[str, ...]] = field(default_factory=list)
    serving_state: str = "ready"
    _seq: int = 1
    _drained: str = ""
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _watchers: list[asyncio.Queue[cluster_pb2.GetStatusResponse | ClusterEvent]] = field(default_factory=list)
    _is_hurt: bool = False
    _ready: asyncio.Event = field(default_factory=asyncio.Event)

    async def status(self) -> cluster_pb2.GetStatusResponse:
        """See `Target.status`."""
        return self._status()

    async def watch(self) -> AsyncGenerator[cluster_pb2.GetStatusResponse | ClusterEvent, None]:
        """See `Target.watch`."""
        queue: asyncio.Queue[cluster_pb2.GetStatusResponse | ClusterEvent] = asyncio.Queue()
        self._watchers.append(queue)
        try:
            yield self._status()
            while True:
                yield await queue.get()
        finally:
            self._watchers.remove(queue)

    async def generate(self, prompt: str, max_tokens: int) -> AsyncGenerator[tuple[int, ...], None]:
        """See `Target.generate`."""
        self.calls.append(("generate", prompt, str(max_tokens)))
        tokens = fake_tokens(max_tokens)
        at = 0
        was_hurt = self._is_hurt
        while at < len(tokens):
            await asyncio.sleep(self.token_seconds)
            if self._is_hurt and not was_hurt:
                was_hurt = True
                at = await self._hurt(tokens, at)
            yield (tokens[at],)
            at += 1

    async def fault(self, kind: str, node_id: str) -> str:
        """See `Target.fault`."""
        self.calls.append(("fault", kind, node_id))
        if self.refusal is not None:
            raise self.refusal
        self._begin("worker ended")
        return "killed the worker, process 4711"

    async def drain(self, node_id: str, *, undo: bool) -> None:
        """See `Target.drain`."""
        self.calls.append(("undo" if undo else "drain", node_id))
        if self.refusal is not None:
            raise self.refusal
        if undo:
            self._drained = ""
            return
        self._drained = node_id
        self._begin("drain begun")

    async def _hurt(self, tokens: Sequence[int], at: int) -> int:
        match self.fate:
            case "lost":
                raise RemoteError("the head worker ended", code="UNAVAILABLE", reason="WORKER_FAILED")
            case "hangs":
                await asyncio.Event().wait()
            case "differs":
                for i in range(at, len(tokens)):
                    tokens[i] += 1000  # type: ignore[index]
        await self._ready.wait()
        return {"skips": at + 2, "repeats": at - 2}.get(self.fate, at)

    def _begin(self, event: str) -> None:
        self._is_hurt = True
        task = asyncio.get_running_loop().create_task(self._recover(event), name="fake recovery")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _recover(self, event: str) -> None:
        await asyncio.sleep(self.detect_seconds)
        if event != "drain begun":
            self.serving_state = "planning"
        self._tell(event, {"node_id": NODE_IDS[2]})
        if not self.recovers:
            return
        await asyncio.sleep(self.plan_seconds)
        self._seq += 1
        self.serving_state = "loading"
        self._tell("plan committed", {"epoch": f"1.1.{self._seq}"})
        await asyncio.sleep(self.load_seconds)
        self.serving_state = "ready"
        self._ready.set()
        self._tell("plan ready", {"epoch": f"1.1.{self._seq}"})

    def _tell(self, event: str, facts: dict[str, str]) -> None:
        for queue in self._watchers:
            if self.tells_events:
                queue.put_nowait(ClusterEvent(datetime.now(UTC), event, facts))
            queue.put_nowait(self._status())

    def _status(self) -> cluster_pb2.GetStatusResponse:
        epoch = types_pb2.Epoch(generation=1, term=1, seq=self._seq)
        status = cluster_pb2.GetStatusResponse(
            node_id=NODE_IDS[0],
            coordinator_node_id=NODE_IDS[0],
            has_quorum=True,
            serving_state=self.serving_state,
        )
        status.document.plan.epoch.CopyFrom(epoch)
        stages = status.document.plan.deployments.add().stages
        for node_id in NODE_IDS:
            node = status.nodes.add(liveness="alive")
            node.member.node_id = node_id
            node.member.facts.hostname = f"mac-{node_id[0]}"
            status.document.members.append(node.member)
            if node_id == self._drained and self._seq > 1:
                node.drain = "drained"
                continue
            stage = stages.add(index=len(stages), node_id=node_id)
            node.stage.CopyFrom(stage)
            node.worker.CopyFrom(
                peer_pb2.WorkerReport(
                    epoch=epoch, state=peer_pb2.WORKER_STATE_READY, loaded_bytes=LOADED_BYTES
                )
            )
        return status
