"""The cluster as a drill sees it."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from macmesh import AsyncClient, ClusterEvent, ClusterStatus


class Target(Protocol):
    """Something that generates, tells what happens to it, and takes faults. Raises errors of `macmesh.errors`."""

    async def status(self) -> ClusterStatus:
        """The cluster now."""
        ...

    def watch(self) -> AsyncGenerator[ClusterStatus | ClusterEvent, None]:
        """The status, then events, and the status again after changes."""
        ...

    def generate(self, prompt: str, max_tokens: int) -> AsyncGenerator[tuple[int, ...], None]:
        """The tokens of a greedy generation that nothing ends before `max_tokens`, response by response."""
        ...

    async def fault(self, kind: str, node_id: str) -> str:
        """Make a fault; what was done."""
        ...

    async def drain(self, node_id: str, *, undo: bool) -> None:
        """Drain a node, or undo that."""
        ...


class ClientTarget:
    """The cluster that a client talks to.

    Args:
        client: The client.
        token_seconds: Longest time to the first token and from one to the next: that of a change of plan.
    """

    def __init__(self, client: AsyncClient, token_seconds: float) -> None:
        self._client = client
        self._token_seconds = token_seconds

    async def status(self) -> ClusterStatus:
        """See `Target.status`."""
        return await self._client.status()

    async def watch(self) -> AsyncGenerator[ClusterStatus | ClusterEvent, None]:
        """See `Target.watch`."""
        async with aclosing(self._client.watch()) as updates:
            async for update in updates:
                yield update

    async def generate(self, prompt: str, max_tokens: int) -> AsyncGenerator[tuple[int, ...], None]:
        """See `Target.generate`."""
        chunks = self._client.generate(
            prompt,
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
            reuse_prefix=False,
            first_token_timeout_seconds=self._token_seconds,
            idle_timeout_seconds=self._token_seconds,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                yield chunk.token_ids

    async def fault(self, kind: str, node_id: str) -> str:
        """See `Target.fault`."""
        return await self._client.drill_fault(kind, node_id)

    async def drain(self, node_id: str, *, undo: bool) -> None:
        """See `Target.drain`."""
        await self._client.drain(node_id, undo=undo)
