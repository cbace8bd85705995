"""What is measured: a cluster behind the SDK."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from macmesh.types import epoch_text
from macmesh_daemon.bench.errors import RemoteAnswerError
from macmesh_daemon.bench.results import Served

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from macmesh import AsyncClient, StagesStats


class Target(Protocol):
    """Something that generates and tells of its stages."""

    async def stage_stats(self) -> StagesStats:
        """Every stage's memory and times, now."""
        ...

    def generate(self, token_ids: Sequence[int], max_tokens: int) -> AsyncGenerator[tuple[int, ...], None]:
        """The tokens of a greedy generation that nothing ends before `max_tokens`, response by response.

        A response may carry no token.
        """
        ...


class ClientTarget:
    """The cluster that a client talks to.

    Args:
        client: The client.
        request_seconds: Longest time to a request's first token, and from one token to the next.
    """

    def __init__(self, client: AsyncClient, request_seconds: float) -> None:
        self._client = client
        self._request_seconds = request_seconds

    async def stage_stats(self) -> StagesStats:
        """See `Target.stage_stats`."""
        return await self._client.stage_stats()

    async def generate(
        self, token_ids: Sequence[int], max_tokens: int
    ) -> AsyncGenerator[tuple[int, ...], None]:
        """See `Target.generate`."""
        chunks = self._client.generate(
            token_ids=token_ids,
            max_tokens=max_tokens,
            temperature=0.0,
            ignore_eos=True,
            first_token_timeout_seconds=self._request_seconds,
            idle_timeout_seconds=self._request_seconds,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                if chunk.paused is not None:
                    raise RemoteAnswerError(
                        f"a request was interrupted, which nothing measured outlives: {chunk.paused.message}"
                    )
                yield chunk.token_ids


def served_of(stats: StagesStats) -> Served:
    """What the stages say they serve."""
    return Served(
        model_id=stats.model.model_id,
        model_path=stats.model.path,
        epoch=epoch_text(stats.epoch),
        context_tokens=stats.context_tokens,
        slots=stats.slots,
        prefill_chunk_tokens=stats.prefill_chunk_tokens,
        vocabulary_tokens=stats.vocabulary_tokens,
        stage_count=len(stats.stages),
    )
