"""Streams of the sync client: typed, with a deadline on every wait, and closing cancels the call."""

import math
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from macmesh._patience import Patience
from macmesh._watchdog import Watchdog
from macmesh.errors import LocalClosedError, LocalDeadlineError, MacmeshError, RemoteInternalError
from macmesh.reasons import Reason
from macmesh.types import FinishReason, GenerateChunk, RequestFacts, Usage
from macmesh.v1 import inference_pb2

T = TypeVar("T")


class Stream(Iterator[T], Generic[T]):
    """What a streaming call yields.

    Iterating blocks until the next value. Leaving the ``with`` block, `close` or dropping the stream cancels
    the call. Raises errors of `macmesh.errors`; after `close` iterating raises LocalClosedError.
    """

    def __init__(
        self,
        call: Any,
        *,
        name: str,
        convert: Callable[[Any], T | None],
        failed: Callable[[grpc.RpcError], MacmeshError],
        watchdog: Watchdog,
        first_seconds: float,
        idle_seconds: float,
    ) -> None:
        self._call = call
        self._name = name
        self._convert = convert
        self._failed = failed
        self._watchdog = watchdog
        self._patience = Patience(first_seconds, idle_seconds)
        self._late = False
        self._closed = False
        self._ended = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Wait for the next value.

        Raises:
            LocalDeadlineError: It did not come in time; the call is cancelled.
            LocalClosedError: The stream was closed.
            RemoteError: The daemon ended the call with an error, or was lost.
        """
        while True:
            value = self._convert(self._receive())
            if value is not None:
                return value

    def _receive(self) -> Any:
        if self._closed:
            raise LocalClosedError(f"{self._name}: the stream was closed")
        if self._ended:
            raise StopIteration
        seconds = self._patience.seconds
        began = time.monotonic()
        guarded = not math.isinf(seconds)
        if guarded:
            self._watchdog.arm(id(self), seconds, self._expire)
        try:
            message = next(self._call)
        except StopIteration:
            self._ended = True
            self._check_end()
            raise
        except grpc.RpcError as error:
            self._ended = True
            if self._late:
                seconds = self._patience.asked_seconds
                raise LocalDeadlineError(
                    f"{self._name}: nothing came for {seconds:g} s", {"timeout_seconds": f"{seconds:g}"}
                ) from None
            if self._closed:
                raise LocalClosedError(f"{self._name}: the stream was closed") from None
            raise self._failed(error) from error
        except BaseException:  # such as KeyboardInterrupt: nobody will read on
            self.close()
            raise
        finally:
            if guarded:
                self._watchdog.disarm(id(self))
        self._patience.came(begins=self._begins(message), waited_seconds=time.monotonic() - began)
        return message

    def _begins(self, message: Any) -> bool:  # noqa: ARG002  for streams that know better
        """Whether what the first deadline is for has come."""
        return True

    def _expire(self) -> None:
        self._late = True
        self._call.cancel()

    def _check_end(self) -> None:
        """Whether the stream may end here."""

    def close(self) -> None:
        """Cancel the call; does nothing where it has ended. Any thread may call this."""
        if not self._ended:
            self._closed = True
            self._call.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_ended"):
            self.close()


class GenerationFacts:
    """What is known of a generation so far.

    Attributes:
        request: Set with the first piece.
        finish_reason: Set with the last piece.
        usage: Set with the last piece.
    """

    request: RequestFacts | None = None
    finish_reason: FinishReason | None = None
    usage: Usage | None = None

    def note(self, chunk: GenerateChunk) -> None:
        """Take over what a piece tells."""
        self.request = chunk.request or self.request
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage

    def check_end(self) -> None:
        """Raise RemoteInternalError where the stream ended without saying how."""
        if self.finish_reason is None:
            raise RemoteInternalError(
                "the daemon ended the generation without a finish reason",
                code="INTERNAL",
                reason=Reason.INTERNAL,
            )


class Generation(Stream[GenerateChunk]):
    """A generation that is being streamed; iterate it for its pieces.

    Attributes:
        facts: What is known so far: request, finish reason, usage.
    """

    def __init__(self, call: Any, **kwargs: Any) -> None:
        super().__init__(call, **kwargs)
        self.facts = GenerationFacts()

    def __next__(self) -> GenerateChunk:
        """Wait for the next piece; see `Stream`."""
        chunk = super().__next__()
        self.facts.note(chunk)
        return chunk

    def _begins(self, message: inference_pb2.GenerateResponse) -> bool:
        return begins(message)

    def _check_end(self) -> None:
        self.facts.check_end()


def begins(message: inference_pb2.GenerateResponse) -> bool:
    """Whether the request has left the queue and its prompt is read: signs of life before that are no tokens."""
    return bool(message.token_ids or message.text or message.finish_reason)
