"""The fake daemon: both services on a real socket, in a loop of the caller or in a thread of its own."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

import grpc
import grpc.aio
from google.protobuf.message import Message

from macmesh.channel_options import SERVER_OPTIONS
from macmesh.paths import socket_address
from macmesh.testing.script import Script
from macmesh.v1 import cluster_pb2, cluster_pb2_grpc, inference_pb2, inference_pb2_grpc
from macmesh.wire_errors import WireFailure

_START_SECONDS: Final = 10.0
_DRAWN_SEED: Final = 4711

_Context = grpc.aio.ServicerContext[Any, Any]


class _Cluster(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(self, daemon: "FakeDaemon") -> None:
        self._daemon = daemon

    async def GetStatus(  # noqa: N802  gRPC names the method
        self, request: cluster_pb2.GetStatusRequest, context: _Context
    ) -> cluster_pb2.GetStatusResponse:
        await self._daemon.begin("GetStatus", request, context)
        return self._daemon.script.status

    async def WatchCluster(  # noqa: N802  as above
        self, request: cluster_pb2.WatchClusterRequest, context: _Context
    ) -> AsyncIterator[cluster_pb2.WatchClusterResponse]:
        await self._daemon.begin("WatchCluster", request, context)
        queue = self._daemon.subscribe()
        try:
            yield cluster_pb2.WatchClusterResponse(status=self._daemon.script.status)
            while True:
                yield await queue.get()
        finally:
            self._daemon.unsubscribe("WatchCluster", queue)

    async def PlanModel(  # noqa: N802  as above
        self, request: cluster_pb2.PlanModelRequest, context: _Context
    ) -> cluster_pb2.PlanModelResponse:
        await self._daemon.begin("PlanModel", request, context)
        return self._daemon.script.plan

    async def LoadModel(  # noqa: N802  as above
        self, request: cluster_pb2.LoadModelRequest, context: _Context
    ) -> AsyncIterator[cluster_pb2.LoadModelResponse]:
        daemon = self._daemon
        await daemon.begin("LoadModel", request, context)
        with daemon.watch_cancel("LoadModel"):
            for count, step in enumerate(daemon.script.load):
                if count == daemon.script.hold_load_after:
                    await daemon.held()
                yield step

    async def UnloadModel(  # noqa: N802  as above
        self, request: cluster_pb2.UnloadModelRequest, context: _Context
    ) -> cluster_pb2.UnloadModelResponse:
        await self._daemon.begin("UnloadModel", request, context)
        return cluster_pb2.UnloadModelResponse(epoch=self._daemon.script.unload_epoch)

    async def DrainNode(  # noqa: N802  as above
        self, request: cluster_pb2.DrainNodeRequest, context: _Context
    ) -> cluster_pb2.DrainNodeResponse:
        await self._daemon.begin("DrainNode", request, context)
        return cluster_pb2.DrainNodeResponse(document_seq=self._daemon.script.drain_seq)

    async def DrillFault(  # noqa: N802  as above
        self, request: cluster_pb2.DrillFaultRequest, context: _Context
    ) -> cluster_pb2.DrillFaultResponse:
        await self._daemon.begin("DrillFault", request, context)
        return cluster_pb2.DrillFaultResponse(done=self._daemon.script.drill_done)

    async def GetStageStats(  # noqa: N802  as above
        self, request: cluster_pb2.GetStageStatsRequest, context: _Context
    ) -> cluster_pb2.GetStageStatsResponse:
        await self._daemon.begin("GetStageStats", request, context)
        return self._daemon.script.stage_stats(self._daemon.tokens_told)


class _Inference(inference_pb2_grpc.InferenceServiceServicer):
    def __init__(self, daemon: "FakeDaemon") -> None:
        self._daemon = daemon

    async def Generate(  # noqa: N802  as above
        self, request: inference_pb2.GenerateRequest, context: _Context
    ) -> AsyncIterator[inference_pb2.GenerateResponse]:
        daemon = self._daemon
        await daemon.begin("Generate", request, context)
        script = daemon.script.generate
        pieces = script.pieces[: request.max_tokens or None]
        with daemon.watch_cancel("Generate"):
            for place in script.waiting:
                yield inference_pb2.GenerateResponse(
                    waiting=inference_pb2.Waiting(position=place, estimate_seconds=1.5 * place)
                )
            for missing in script.paused:
                yield inference_pb2.GenerateResponse(
                    paused=inference_pb2.Paused(reason="NOT_READY", message=missing)
                )
            had = len(request.resume.token_ids)
            if request.HasField("resume"):
                yield inference_pb2.GenerateResponse(
                    index=request.resume.next_index, request=_request_facts(request, daemon.count("Generate"))
                )
            for count, piece in enumerate(pieces[had:], start=had):
                if script.lost_after is not None and count - had == script.lost_after:
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the connection broke")
                if count == script.hold_after:
                    await daemon.held()
                if count == script.fail_after and script.failure is not None:
                    await _abort(context, script.failure)
                response = inference_pb2.GenerateResponse(
                    index=count, text=piece, token_ids=[script.first_token_id + count], logprobs=[-0.5]
                )
                daemon.tokens_told += 1
                if count == 0:
                    response.request.CopyFrom(_request_facts(request, daemon.count("Generate")))
                if count == len(pieces) - 1 and not script.drop_end:
                    cut = len(pieces) < len(script.pieces)
                    response.finish_reason = (
                        inference_pb2.FINISH_REASON_LENGTH if cut else inference_pb2.FINISH_REASON_STOP
                    )
                    response.usage.CopyFrom(
                        inference_pb2.Usage(
                            prompt_tokens=_prompt_tokens(request),
                            completion_tokens=len(pieces),
                            first_token_seconds=0.25,
                            decode_seconds=0.5,
                        )
                    )
                yield response


def _request_facts(request: inference_pb2.GenerateRequest, count: int) -> inference_pb2.RequestFacts:
    seed = request.sampling.seed if request.sampling.HasField("seed") else _DRAWN_SEED
    facts = inference_pb2.RequestFacts(
        request_id=request.resume.request_id or f"r{count}",
        seed=seed,
        model_id=request.model_id or "MiniMax-M2.5-5bit",
        epoch="1.3.2",
        model_digest="d1",
    )
    if request.tell_prompt_tokens:
        facts.prompt_token_ids.extend(range(_prompt_tokens(request)))
    return facts


def _prompt_tokens(request: inference_pb2.GenerateRequest) -> int:
    match request.WhichOneof("prompt"):
        case "tokens":
            return len(request.tokens.token_ids)
        case "chat":
            return sum(len(m.content.split()) for m in request.chat.messages)
        case _:
            return len(request.text.split())


async def _abort(context: _Context, failure: WireFailure) -> NoReturn:
    await context.abort(failure.code, failure.message, failure.trailing_metadata)


class _CancelWatch:
    """Notes in the daemon when the body is cancelled, which is what a client's cancel does to a handler."""

    def __init__(self, daemon: "FakeDaemon", name: str) -> None:
        self._daemon = daemon
        self._name = name

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, asyncio.CancelledError | GeneratorExit):
            self._daemon.note_cancelled(self._name)


class FakeDaemon:
    """A scripted daemon in the running event loop.

    Args:
        listen: Path of a Unix socket, or ``host:port`` (port 0: any) with credentials.
        credentials: Server credentials for TCP.
        script: What to answer.

    Attributes:
        script: What to answer; may be replaced or changed while running.
        calls: Every request so far: RPC name and message.
        cancelled: Set when a streaming call was cancelled by its client.
        tokens_told: Tokens generated so far.
        target: Where a client connects to, once started.
    """

    def __init__(
        self,
        listen: Path | str,
        *,
        credentials: grpc.ServerCredentials | None = None,
        script: Script | None = None,
    ) -> None:
        self.script = script or Script()
        self.calls: list[tuple[str, Message]] = []
        self.cancelled = threading.Event()
        self.tokens_told = 0
        self.target = ""
        self._listen = listen
        self._credentials = credentials
        self._released: asyncio.Event | None = None
        self._queues: list[asyncio.Queue[cluster_pb2.WatchClusterResponse]] = []
        self._server: grpc.aio.Server | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            RuntimeError: The address cannot be bound.
        """
        self._loop = asyncio.get_running_loop()
        self._released = asyncio.Event()
        self._server = grpc.aio.server(options=SERVER_OPTIONS)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(_Cluster(self), self._server)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(_Inference(self), self._server)
        if isinstance(self._listen, Path):
            self.target = f"unix://{self._listen.absolute()}"
            self._server.add_insecure_port(socket_address(self._listen))
        else:
            if self._credentials is None:
                raise RuntimeError(f"{self._listen}: TCP needs credentials")
            port = self._server.add_secure_port(self._listen, self._credentials)
            self.target = f"{self._listen.rpartition(':')[0]}:{port}"
        await self._server.start()

    async def stop(self, grace_seconds: float = 0.0) -> None:
        """End: running calls are cancelled after the grace."""
        if self._server is not None:
            await self._server.stop(grace_seconds)
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def count(self, name: str) -> int:
        """How often an RPC was called."""
        return sum(called == name for called, _ in self.calls)

    def release(self) -> None:
        """Let what is held go on. Any thread may call this."""
        self._in_loop(lambda: self._released.set() if self._released else None)

    def push_event(self, event: str, **facts: Any) -> None:
        """Send an event to every watcher. Any thread may call this."""
        message = cluster_pb2.WatchClusterResponse()
        message.event.event = event
        message.event.facts_json = json.dumps(facts)
        message.event.time.GetCurrentTime()
        self._push(message)

    def push_status(self, status: cluster_pb2.GetStatusResponse) -> None:
        """Make this the status and send it to every watcher. Any thread may call this."""
        self.script.status = status
        self._push(cluster_pb2.WatchClusterResponse(status=status))

    def _push(self, message: cluster_pb2.WatchClusterResponse) -> None:
        def put() -> None:
            for queue in self._queues:
                queue.put_nowait(message)

        self._in_loop(put)

    def _in_loop(self, action: Any) -> None:
        if self._loop is None:
            raise RuntimeError("the fake daemon is not started")
        self._loop.call_soon_threadsafe(action)

    # Used by the services.

    async def begin(self, name: str, request: Message, context: _Context) -> None:
        """Note a call; fail or hold it where the script says so."""
        self.calls.append((name, request))
        if name in self.script.held:
            with self.watch_cancel(name):
                await self.held()
        if name in self.script.failures:
            await _abort(context, self.script.failures[name])

    async def held(self) -> None:
        """Wait for `release`."""
        if self._released is not None:
            await self._released.wait()

    def watch_cancel(self, name: str) -> _CancelWatch:
        """A context in which a cancel by the client is noted."""
        return _CancelWatch(self, name)

    def note_cancelled(self, name: str) -> None:
        """A client cancelled a call."""
        self.calls.append((f"{name} cancelled", cluster_pb2.GetStatusRequest()))
        self.cancelled.set()

    def subscribe(self) -> asyncio.Queue[cluster_pb2.WatchClusterResponse]:
        """A queue for one watcher."""
        queue: asyncio.Queue[cluster_pb2.WatchClusterResponse] = asyncio.Queue()
        self._queues.append(queue)
        return queue

    def unsubscribe(self, name: str, queue: asyncio.Queue[cluster_pb2.WatchClusterResponse]) -> None:
        """A watcher went."""
        self._queues.remove(queue)
        self.note_cancelled(name)


class ThreadedFakeDaemon:
    """A `FakeDaemon` in a thread and event loop of its own, for sync tests and for other processes.

    Attributes are those of the `FakeDaemon`, reached as `daemon`; the common ones are here too.
    """

    def __init__(self, listen: Path | str, **kwargs: Any) -> None:
        self.daemon = FakeDaemon(listen, **kwargs)
        self._started: Future[None] = Future()
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="fake-daemon", daemon=True)

    @property
    def target(self) -> str:
        """Where a client connects to."""
        return self.daemon.target

    @property
    def script(self) -> Script:
        """What to answer."""
        return self.daemon.script

    @property
    def calls(self) -> list[tuple[str, Message]]:
        """Every request so far."""
        return self.daemon.calls

    @property
    def cancelled(self) -> threading.Event:
        """Set when a streaming call was cancelled by its client."""
        return self.daemon.cancelled

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        try:
            await self.daemon.start()
        except BaseException as error:  # noqa: BLE001  handed to the thread that waits in __enter__
            self._started.set_exception(error)
            return
        self._started.set_result(None)
        await self._stop.wait()
        await self.daemon.stop()

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(_START_SECONDS)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the server and its thread."""
        if self._loop is not None and self._stop is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_START_SECONDS)
