"""Streams of the sync client: typed, with a deadline on every wait, and closing cancels the call."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from macmesh._patience import Patience
from macmesh._recovery import SILENCE_SECONDS, Recovery
from macmesh._watchdog import Watchdog
from macmesh.errors import (
    LocalClosedError,
    LocalDeadlineError,
    MacmeshError,
    RemoteInternalError,
    RemoteUnavailableError,
)
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
        self._closing = threading.Event()

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
        seconds = min(self._patience.seconds, self._longest_silence())
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
                raise too_late(self._name, self._patience, seconds) from None
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

    def _longest_silence(self) -> float:
        """After so many seconds without anything the daemon is taken for lost."""
        return math.inf

    def _expire(self) -> None:
        self._late = True
        self._call.cancel()

    def _check_end(self) -> None:
        """Whether the stream may end here."""

    def close(self) -> None:
        """Cancel the call; does nothing where it has ended. Any thread may call this."""
        if not self._ended:
            self._closed = True
            self._closing.set()
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


def too_late(name: str, patience: Patience, seconds: float) -> MacmeshError:
    """The error of a wait that was too long: for the caller, or for a daemon that lives."""
    if seconds < patience.seconds:
        return RemoteUnavailableError(
            f"{name}: the daemon gave no sign of life for {seconds:g} s",
            code="UNAVAILABLE",
            reason=Reason.CONNECTION_FAILED,
        )
    asked = patience.asked_seconds
    return LocalDeadlineError(f"{name}: nothing came for {asked:g} s", {"timeout_seconds": f"{asked:g}"})


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

    Where its node is lost, another one, or the same, takes it up behind the last piece.

    Args:
        call: As for `Stream`, and so are the others.
        recovery: What is kept for that.
        reopen: Sends a request to the next node.
        nodes: How many nodes are known.

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

    def __next__(self) -> GenerateChunk:
        """Wait for the next piece; see `Stream`."""
        while True:
            try:
                chunk = super().__next__()
            except MacmeshError as error:
                self._recover(error)
                continue
            self.facts.note(chunk)
            return chunk

    def _receive(self) -> inference_pb2.GenerateResponse:
        message: inference_pb2.GenerateResponse = super()._receive()
        self._recovery.note(message)
        if message.HasField("paused"):
            self._patience.interrupted()
        return message

    def _longest_silence(self) -> float:
        return longest_silence(self._recovery)

    def _recover(self, error: MacmeshError) -> None:
        """Have another node go on, or raise the error."""
        retry = self._recovery.after(error, time.monotonic(), nodes=self._nodes())
        if retry is None:
            raise error
        self._ended = False  # `close` has something to do again
        if self._closing.wait(retry.pause_seconds):
            raise LocalClosedError(f"{self._name}: the stream was closed") from None
        self._call = self._reopen(retry.request)
        self._late = False
        self._patience.interrupted()

    def _begins(self, message: inference_pb2.GenerateResponse) -> bool:
        return begins(message)

    def _check_end(self) -> None:
        self.facts.check_end()


def longest_silence(recovery: Recovery) -> float:
    """How long a generation's node may say nothing."""
    if not recovery.is_on:
        return math.inf
    return recovery.answer_seconds(time.monotonic()) if recovery.is_asking else SILENCE_SECONDS


def begins(message: inference_pb2.GenerateResponse) -> bool:
    """Whether the request has left the queue and its prompt is read: signs of life before that are no tokens."""
    return bool(message.token_ids or message.text or message.finish_reason)
