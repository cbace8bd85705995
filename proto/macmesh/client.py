"""The sync client."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, Unpack

import grpc
from google.protobuf.message import Message

from macmesh import _messages
from macmesh._connection import Connection
from macmesh._recovery import Recovery
from macmesh._streams import Generation, Stream
from macmesh.errors import RemoteInternalError
from macmesh.reasons import Reason
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


class Client(Connection):
    """A connection to one node, for blocking code. Threads may share it.

    ::

        with Client() as client:
            for chunk in client.generate("Once upon a time", max_tokens=50):
                print(chunk.text, end="")

    Args:
        target: ``unix:///path``, a path, or ``host:port``; by default the socket of the user's own daemon
            (`macmesh.default_socket_path`), or the first address in the credentials.
        credentials: Needed for ``host:port``: `Credentials` or the path of a credentials file.
        timeouts: Default deadlines of the calls.

    Nothing is connected before the first call.

    Raises:
        LocalArgumentError: The target is malformed.
        LocalCredentialsError: The credentials cannot be read.
        LocalSocketForbiddenError: The default socket belongs to another user.
    """

    def status(self, *, timeout_seconds: float | None = None) -> ClusterStatus:
        """The cluster as the node sees it now.

        Args:
            timeout_seconds: Deadline; None takes `Timeouts.status`.
        """
        status = self._unary(
            "GetStatus",
            self._cluster.GetStatus,
            cluster_pb2.GetStatusRequest(),
            timeout_seconds,
            self._timeouts.status,
        )
        self._book.learn(status)
        return status

    def stage_stats(self, *, timeout_seconds: float | None = None) -> StagesStats:
        """Memory and time of every stage of the running plan; each stage's worker is asked now.

        A stage whose figures are missing or old says why in ``reason``. A call while a long prefill step runs
        may take as long as the step.

        Args:
            timeout_seconds: Deadline; None takes `Timeouts.stage_stats`.
        """
        return self._unary(
            "GetStageStats",
            self._cluster.GetStageStats,
            cluster_pb2.GetStageStatsRequest(),
            timeout_seconds,
            self._timeouts.stage_stats,
        )

    def watch(self) -> Stream[ClusterStatus | ClusterEvent]:
        """The status now, then every event, and the status again after each change; until closed.

        The first status has the deadline `Timeouts.watch_first`.
        """
        return Stream[ClusterStatus | ClusterEvent](
            **self._start(
                "WatchCluster",
                self._cluster.WatchCluster,
                cluster_pb2.WatchClusterRequest(),
                convert=_messages.update,
                first_seconds=self._timeouts.watch_first,
            )
        )

    def plan(
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
        """What the cluster would do with a model; changes nothing.

        Args:
            model: A folder, or a name below a model folder of the node.
            context_tokens: Tokens of context; 0 takes the model's position limit.
            slots: Requests served at once; 0 takes 1.
            objective: "latency", "throughput" or "balanced"; empty takes "balanced".
            stage_count: Stages to use; 0 lets the planner choose.
            timeout_seconds: Deadline; None takes `Timeouts.plan`.
            **options: See `macmesh.PlanOptions`.

        Raises:
            LocalArgumentError: A value that no daemon would take.
        """
        request = _messages.plan_request(model, context_tokens, slots, objective, stage_count, **options)
        response = self._unary(
            "PlanModel", self._cluster.PlanModel, request, timeout_seconds, self._timeouts.plan
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
    ) -> Stream[LoadProgress]:
        """Serve a model in place of the one served now; yields the progress, last the phase "ready".

        Closing the stream stops watching, not the load. Arguments as for `load`; deadline `Timeouts.load`.
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
        return Stream[LoadProgress](
            **self._start(
                "LoadModel",
                self._cluster.LoadModel,
                request,
                convert=_messages.load_progress,
                total_seconds=self._timeouts.load if timeout_seconds is None else timeout_seconds,
                first_seconds=self._timeouts.load_idle,
                idle_seconds=self._timeouts.load_idle,
            )
        )

    def load(
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

        Args:
            model: A folder, or a name below a model folder of the node.
            context_tokens: Tokens of context; 0 takes the model's position limit.
            slots: Requests served at once; 0 takes 1.
            objective: "latency", "throughput" or "balanced"; empty takes "balanced".
            stage_count: Stages to use; 0 lets the planner choose.
            kv_bits: Bits of a quantised cache, 4 or 8; 0 keeps the model's own type.
            allow_tensor_parallel: Splitting every layer over equal nodes is a candidate next to the pipeline.
            transfers: How decode steps go from stage to stage: "auto" (or empty), "host" or "graph".
            on_progress: Called with every step.
            timeout_seconds: Deadline; None takes `Timeouts.load`.
        """
        progress: LoadProgress | None = None
        with self.iter_load(
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
            for progress in steps:
                if on_progress is not None:
                    on_progress(progress)
        return loaded(progress)

    def unload(self, *, timeout_seconds: float | None = None) -> str:
        """Serve nothing; returns the epoch of the empty plan.

        Args:
            timeout_seconds: Deadline; None takes `Timeouts.unload`.
        """
        response = self._unary(
            "UnloadModel",
            self._cluster.UnloadModel,
            cluster_pb2.UnloadModelRequest(),
            timeout_seconds,
            self._timeouts.unload,
        )
        return epoch_text(response.epoch)

    def drain(
        self,
        node_id: str,
        *,
        undo: bool = False,
        force: bool = False,
        leave: bool = False,
        timeout_seconds: float | None = None,
    ) -> int:
        """Have a node serve no stage, or let it again; returns the sequence number of the document that says so.

        The status tells how far it is (``NodeStatus.drain``).

        Args:
            node_id: The whole id.
            undo: Let it serve again.
            force: Also where no plan fits without it: what is served then ends.
            leave: It says goodbye once it serves no stage.
            timeout_seconds: Deadline; None takes `Timeouts.plan`.
        """
        request = cluster_pb2.DrainNodeRequest(node_id=node_id, undo=undo, force=force, leave=leave)
        response = self._unary(
            "DrainNode", self._cluster.DrainNode, request, timeout_seconds, self._timeouts.plan
        )
        return response.document_seq

    def drill_fault(self, kind: str, node_id: str, *, timeout_seconds: float = 20.0) -> str:
        """Make a fault to rehearse it; returns what was done. `daemonctl drill` does the rest.

        Args:
            kind: "kill-worker" or "restart-coordinator".
            node_id: Where.
            timeout_seconds: Deadline.
        """
        request = cluster_pb2.DrillFaultRequest(kind=kind, node_id=node_id)
        return self._unary(
            "DrillFault", self._cluster.DrillFault, request, timeout_seconds, timeout_seconds
        ).done

    def generate(
        self,
        prompt: str | None = None,
        *,
        timeout_seconds: float | None = None,
        first_token_timeout_seconds: float | None = None,
        idle_timeout_seconds: float | None = None,
        **options: Unpack[_messages.GenerateOptions],
    ) -> Generation:
        """Generate and stream; iterate the result for `GenerateChunk`. Closing it cancels the request.

        Where the node is lost, the generation goes on at another one, or at the same once it is back, behind the
        last piece; `Timeouts.generate_resume` limits how long that may take.

        Args:
            prompt: Plain text, tokenised as it is; or give ``messages`` or ``token_ids``.
            timeout_seconds: Deadline of the whole; None takes `Timeouts.generate`.
            first_token_timeout_seconds: None takes `Timeouts.generate_first_token`.
            idle_timeout_seconds: Longest wait between tokens; None takes `Timeouts.generate_idle`.
            **options: See `macmesh.GenerateOptions`.
        """
        times = self._timeouts
        total = times.generate if timeout_seconds is None else timeout_seconds
        now = time.monotonic()
        recovery = Recovery(
            _messages.generate_request(prompt, **options), seconds=times.generate_resume, ends_at=now + total
        )
        node = self._target

        def reopen(request: inference_pb2.GenerateRequest) -> Any:
            nonlocal node
            self._check_open("Generate")
            node = self._book.after(node)
            stub = inference_pb2_grpc.InferenceServiceStub(self._channel_to(node))
            return stub.Generate(request, timeout=grpc_timeout(max(0.0, recovery.ends_at - time.monotonic())))

        arguments = self._start(
            "Generate",
            self._inference.Generate,
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
        arguments["failed"] = lambda error: self._failed(error, "Generate", grpc_timeout(total), node)
        return Generation(recovery=recovery, reopen=reopen, nodes=lambda: len(self._book), **arguments)

    def _look_around(self) -> None:
        """Learn where the other members are, without waiting for it."""
        asked = self._cluster.GetStatus.future(cluster_pb2.GetStatusRequest(), timeout=self._timeouts.status)

        def learn(answer: Any) -> None:
            with contextlib.suppress(grpc.RpcError, grpc.FutureCancelledError):
                self._book.learn(answer.result())

        asked.add_done_callback(learn)

    def complete(
        self,
        prompt: str | None = None,
        *,
        timeout_seconds: float | None = None,
        **options: Unpack[_messages.GenerateOptions],
    ) -> Completion:
        """Generate and return the whole. Arguments as for `generate`."""
        with self.generate(prompt, timeout_seconds=timeout_seconds, **options) as generation:
            return _messages.completion(list(generation))

    def access(self, name: str, request: Message, *, timeout_seconds: float = 150.0) -> Any:
        """Call the access service: join tokens, clients, eviction. `daemonctl` has a command for each.

        Args:
            name: Of the RPC, such as ``ListClients``; see ``access.proto``.
            request: Its request.
            timeout_seconds: Deadline. An eviction takes as long as the cluster takes to agree.
        """
        return self._unary(name, getattr(self._access, name), request, timeout_seconds, timeout_seconds)


def loaded(progress: LoadProgress | None) -> LoadProgress:
    """The last step of a load, which must be "ready"."""
    if progress is None or progress.phase != "ready":
        raise RemoteInternalError(
            f"the daemon ended the load in phase {progress.phase if progress else 'none'!r}, not 'ready'",
            code="INTERNAL",
            reason=Reason.INTERNAL,
        )
    return progress
