"""What the schedule of the running plan counts, as status tells it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from macmesh.v1 import peer_pb2
from macmesh_daemon.node.call_errors import CallError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.cluster.messages import Epoch

#: However often the status is asked for, another node is asked at most this often.
LEAST_INTERVAL_SECONDS: Final = 1.0


class HeadSchedule:
    """The newest figures of the head's worker.

    The head's node has them already: workers answer its pings every 2 s. So nobody's inference thread is asked; another
    node costs one short call, which all who ask in the same second share.

    Args:
        ask: The newest figures that the worker of a node and an epoch has given; raises `CallError` within a short time
            where there are none.
        clock: This node's.
    """

    def __init__(self, ask: Callable[[Epoch, str], Awaitable[peer_pb2.StageStats]], clock: Clock) -> None:
        self._ask = ask
        self._clock = clock
        self._asking = asyncio.Lock()
        self._of: tuple[Epoch, str] | None = None
        self._at = 0.0
        self._newest: peer_pb2.StageStats | None = None

    async def newest(self, epoch: Epoch, head_node_id: str) -> peer_pb2.StageStats | None:
        """The figures with their age now; None where the head gave none in time or counts nothing."""
        async with self._asking:
            age = self._clock.now() - self._at
            if self._of != (epoch, head_node_id) or age >= LEAST_INTERVAL_SECONDS:
                try:
                    self._newest = await self._ask(epoch, head_node_id)
                except CallError:
                    self._newest = None
                self._of, self._at, age = (epoch, head_node_id), self._clock.now(), 0.0
        if self._newest is None or not self._newest.HasField("scheduler"):
            return None
        aged = peer_pb2.StageStats()
        aged.CopyFrom(self._newest)
        aged.age_seconds += age
        return aged
