"""The async client."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Unpack

import grpc
import grpc.aio

from macmesh import _messages
from macmesh._aio_connection import AsyncConnection
from macmesh._aio_streams import AsyncGeneration, AsyncStream
from macmesh._recovery import Recovery
from macmesh.client import loaded
from macmesh.errors import MacmeshError
from macmesh.timeouts import grpc_timeout
from macmesh.types import (
    ClusterEvent,
    ClusterStatus,
    Completion,
    LoadProgress,
    PlanResult,
    StagesStats,
    epoch_text,
)
from macmesh.v1 import cluster_pb2, inference_pb2, inference_pb2_grpc


class AsyncClient(AsyncConnection):
    """A connection to one node, for asyncio; belongs to the event loop of its first call.

    ::

        async with AsyncClient() as client:
            async for chunk in client.generate("Once upon a time", max_tokens=50):
                print(chunk.text, end="")

    Arguments and errors are those of `macmesh.Client`.
    """

    async def status(self, *, timeout_seconds: float | None = None) -> ClusterStatus:
        """The cluster as the node sees it now.

        Args:
            timeout_seconds: Deadline; None takes `Timeouts.status`.
        """
        status = await self._unary(
            "GetStatus",
            self._cluster().GetStatus,
            cluster_pb2.GetStatusRequest(),
            timeout_seconds,
            self._timeouts.status,
        )
        self._book.learn(status)
        return status

    async def stage_stats(self, *, timeout_seconds: float | None = None) -> StagesStats:
        """Memory and time of every stage of the running plan; each stage's worker is asked now.

        A stage whose figures are missing or old says why in ``reason``. A call while a long prefill step runs
        may take as long as the step.

        Args:
            timeout_seconds: Deadline; None takes `Timeouts.stage_stats`.
        """
        return await self._unary(
            "GetStageStats",
            self._cluster().GetStageStats,
            cluster_pb2.GetStageStatsRequest(),
            timeout_seconds,
            self._timeouts.stage_stats,
        )

    def watch(self) -> AsyncStream[ClusterStatus | ClusterEvent]:
        """The status now, then every event, and the status again after each change; until closed.

        The first status has the deadline `Timeouts.watch_first`.
        """
        return AsyncStream[ClusterStatus | ClusterEvent](
            **self._start(
                "WatchCluster",
                self._cluster().WatchCluster,
                cluster_pb2.WatchClusterRequest(),
                convert=_messages.update,
                first_seconds=self._timeouts.watch_first,
            )
        )

    async def plan(
        self,
        model: str,
        *,
        context_tokens: int = 0,
        slots: int = 0,
        objective: str = "",
        stage_count: int = 0,
        timeout_seconds: float | None = None,
        **options: Unpack[_messages.PlanOptions],
    ) -> PlanResult:
        """What the cluster would do with a model; changes nothing. Arguments as for `macmesh.Client.plan`."""
        request = _messages.plan_request(model, context_tokens, slots, objective, stage_count, **options)
        response = await self._unary(
            "PlanModel", self._cluster().PlanModel, request, timeout_seconds, self._timeouts.plan
        )
        return _messages.plan_result(response)

    def iter_load(
        self,
        model: str,
        *,
        context_tokens: int = 0,
        slots: int = 0,
        objective: str = "",
        stage_count: int = 0,
        kv_bits: int = 0,
        allow_tensor_parallel: bool = False,
        transfers: str = "",
        timeout_seconds: float | None = None,
    ) -> AsyncStream[LoadProgress]:
        """Serve a model in place of the one served now; yields the progress, last the phase "ready".

        Closing the stream stops watching, not the load. Arguments as for `macmesh.Client.iter_load`.
        """
        request = _messages.load_request(
            model,
            context_tokens,
            slots,
            objective,
            stage_count,
            kv_bits=kv_bits,
            allow_tensor_parallel=allow_tensor_parallel,
            transfers=transfers,
        )
        return AsyncStream[LoadProgress](
            **self._start(
                "LoadModel",
                self._cluster().LoadModel,
                request,
                convert=_messages.load_progress,
                total_seconds=self._timeouts.load if timeout_seconds is None else timeout_seconds,
                first_seconds=self._timeouts.load_idle,
                idle_seconds=self._timeouts.load_idle,
            )
        )

    async def load(
        self,
        model: str,
        *,
        context_tokens: int = 0,
        slots: int = 0,
        objective: str = "",
        stage_count: int = 0,
        kv_bits: int = 0,
        allow_tensor_parallel: bool = False,
        transfers: str = "",
        on_progress: Callable[[LoadProgress], None] | None = None,
        timeout_seconds: float | None = None,
    ) -> LoadProgress:
        """Serve a model in place of the one served now; returns when it is ready.

        Arguments as for `macmesh.Client.load`.
        """
        progress: LoadProgress | None = None
        async with self.iter_load(
            model,
            context_tokens=context_tokens,
            slots=slots,
            objective=objective,
            stage_count=stage_count,
            kv_bits=kv_bits,
            allow_tensor_parallel=allow_tensor_parallel,
            transfers=transfers,
            timeout_seconds=timeout_seconds,
        ) as steps:
            async for progress in steps:
                if on_progress is not None:
                    on_progress(progress)
        return loaded(progress)

    async def unload(self, *, timeout_seconds: float | None = None) -> str:
        """Serve nothing; returns the epoch of the empty plan.

        Args:
            timeout_seconds: Deadline; None takes `Timeouts.unload`.
        """
        response = await self._unary(
            "UnloadModel",
            self._cluster().UnloadModel,
            cluster_pb2.UnloadModelRequest(),
            timeout_seconds,
            self._timeouts.unload,
        )
        return epoch_text(response.epoch)

    async def drain(
        self,
        node_id: str,
        *,
        undo: bool = False,
        force: bool = False,
        leave: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """See `Client.drain`."""
        request = cluster_pb2.DrainNodeRequest(node_id=node_id, undo=undo, force=force, leave=leave)
        response = await self._unary(
            "DrainNode", self._cluster().DrainNode, request, timeout_seconds, self._timeouts.plan
        )
        return response.document_seq

    async def drill_fault(self, kind: str, node_id: str, *, timeout_seconds: float = 20.0) -> str:
        """See `Client.drill_fault`."""
        request = cluster_pb2.DrillFaultRequest(kind=kind, node_id=node_id)
        response = await self._unary(
            "DrillFault", self._cluster().DrillFault, request, timeout_seconds, timeout_seconds
        )
        return response.done

    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout_seconds: float | None = None,
        first_token_timeout_seconds: float | None = None,
        idle_timeout_seconds: float | None = None,
        **options: Unpack[_messages.GenerateOptions],
    ) -> AsyncGeneration:
        """Generate and stream; ``async for`` over the result gives `GenerateChunk`. Closing it cancels.

        Arguments as for `macmesh.Client.generate`.
        """
        times = self._timeouts
        total = times.generate if timeout_seconds is None else timeout_seconds
        now = time.monotonic()
        recovery = Recovery(
            _messages.generate_request(prompt, **options), seconds=times.generate_resume, ends_at=now + total
        )
        arguments = self._start(
            "Generate",
            self._inference().Generate,
            recovery.request,
            convert=_messages.chunk,
            total_seconds=total,
            first_seconds=times.generate_first_token
            if first_token_timeout_seconds is None
            else first_token_timeout_seconds,
            idle_seconds=times.generate_idle if idle_timeout_seconds is None else idle_timeout_seconds,
        )
        if recovery.is_on and self._book.wants_news(now):
            self._look_around()
        node = self._target

        def reopen(request: inference_pb2.GenerateRequest) -> Any:
            nonlocal node
            node = self._book.after(node)
            stub = inference_pb2_grpc.InferenceServiceStub(self._channel_to(node))
            return stub.Generate(request, timeout=grpc_timeout(max(0.0, recovery.ends_at - time.monotonic())))

        arguments["failed"] = lambda error: self._failed(error, "Generate", grpc_timeout(total), node)
        return AsyncGeneration(recovery=recovery, reopen=reopen, nodes=lambda: len(self._book), **arguments)

    def _look_around(self) -> None:
        """Learn where the other members are, without waiting for it."""

        async def learn() -> None:
            with contextlib.suppress(grpc.RpcError, MacmeshError, asyncio.CancelledError):
                asked = cluster_pb2.GetStatusRequest()
                self._book.learn(await self._cluster().GetStatus(asked, timeout=self._timeouts.status))

        self._looking = asyncio.get_running_loop().create_task(learn(), name="macmesh-members")

    async def complete(
        self,
        prompt: str | None = None,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[_messages.GenerateOptions],
    ) -> Completion:
        """Generate and return the whole. Arguments as for `macmesh.Client.generate`."""
        async with self.generate(prompt, timeout_seconds=timeout_seconds, **options) as generation:
            return _messages.completion([chunk async for chunk in generation])
