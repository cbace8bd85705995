"""Streams of the async client: typed, with a deadline on every wait, and closing cancels the call."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from macmesh._patience import Patience
from macmesh._recovery import Recovery
from macmesh._streams import GenerationFacts, begins, longest_silence, too_late
from macmesh.errors import LocalClosedError, MacmeshError
from macmesh.types import GenerateChunk
from macmesh.v1 import inference_pb2

T = TypeVar("T")


class AsyncStream(AsyncIterator[T], Generic[T]):
    """What a streaming call yields, for ``async for``.

    Leaving the ``async with`` block, `aclose`, or cancelling the task that waits cancels the call. Raises
    errors of `macmesh.errors`; after `aclose` iterating raises LocalClosedError. One task at a time may
    iterate.
    """

    def __init__(
        self,
        call: Any,
        *,
        name: str,
        convert: Callable[[Any], T | None],
        failed: Callable[[grpc.RpcError], MacmeshError],
        first_seconds: float,
        idle_seconds: float,
    ) -> None:
        self._call = call
        self._name = name
        self._convert = convert
        self._failed = failed
        self._patience = Patience(first_seconds, idle_seconds)
        self._closed = False
        self._ended = False
        self._closing = asyncio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Wait for the next value.

        Raises:
            LocalDeadlineError: It did not come in time; the call is cancelled.
            LocalClosedError: The stream was closed.
            RemoteError: The daemon ended the call with an error, or was lost.
        """
        while True:
            value = self._convert(await self._receive())
            if value is not None:
                return value

    async def _receive(self) -> Any:
        if self._closed:
            raise LocalClosedError(f"{self._name}: the stream was closed")
        if self._ended:
            raise StopAsyncIteration
        seconds = min(self._patience.seconds, self._longest_silence())
        began = time.monotonic()
        try:
            async with asyncio.timeout(None if math.isinf(seconds) else seconds):
                message = await self._call.read()
        except TimeoutError:
            self._ended = True
            self._call.cancel()
            raise too_late(self._name, self._patience, seconds) from None
        except grpc.RpcError as error:
            self._ended = True
            raise self._failed(error) from error
        except asyncio.CancelledError:
            # Either this task is being cancelled, or `aclose` cancelled the call below it.
            self._ended = True
            self._call.cancel()
            if self._closed:
                raise LocalClosedError(f"{self._name}: the stream was closed") from None
            raise
        if message is grpc.aio.EOF:
            self._ended = True
            self._check_end()
            raise StopAsyncIteration
        self._patience.came(begins=self._begins(message), waited_seconds=time.monotonic() - began)
        return message

    def _begins(self, message: Any) -> bool:  # noqa: ARG002  for streams that know better
        """Whether what the first deadline is for has come."""
        return True

    def _longest_silence(self) -> float:
        """After so many seconds without anything the daemon is taken for lost."""
        return math.inf

    def _check_end(self) -> None:
        """Whether the stream may end here."""

    async def aclose(self) -> None:
        """Cancel the call; does nothing where it has ended."""
        if not self._ended:
            self._closed = True
            self._closing.set()
            self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()


class AsyncGeneration(AsyncStream[GenerateChunk]):
    """A generation that is being streamed; iterate it for its pieces. See `macmesh.Generation`.

    Attributes:
        facts: What is known so far: request, finish reason, usage.
    """

    def __init__(
        self,
        call: Any,
        *,
        recovery: Recovery,
        reopen: Callable[[inference_pb2.GenerateRequest], Any],
        nodes: Callable[[], int],
        **kwargs: Any,
    ) -> None:
        super().__init__(call, **kwargs)
        self.facts = GenerationFacts()
        self._recovery = recovery
        self._reopen = reopen
        self._nodes = nodes

    async def __anext__(self) -> GenerateChunk:
        """Wait for the next piece; see `AsyncStream`."""
        while True:
            try:
                chunk = await super().__anext__()
            except MacmeshError as error:
                await self._recover(error)
                continue
            self.facts.note(chunk)
            return chunk

    async def _receive(self) -> inference_pb2.GenerateResponse:
        message: inference_pb2.GenerateResponse = await super()._receive()
        self._recovery.note(message)
        if message.HasField("paused"):
            self._patience.interrupted()
        return message

    def _longest_silence(self) -> float:
        return longest_silence(self._recovery)

    async def _recover(self, error: MacmeshError) -> None:
        """Have another node go on, or raise the error."""
        retry = self._recovery.after(error, time.monotonic(), nodes=self._nodes())
        if retry is None:
            raise error
        self._ended = False  # `close` has something to do again
        if await self._closes_within(retry.pause_seconds):
            raise LocalClosedError(f"{self._name}: the stream was closed") from None
        self._call = self._reopen(retry.request)
        self._patience.interrupted()

    async def _closes_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._closing.wait()
        except TimeoutError:
            return False

    def _begins(self, message: inference_pb2.GenerateResponse) -> bool:
        return begins(message)

    def _check_end(self) -> None:
        self.facts.check_end()
