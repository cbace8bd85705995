"""The API node's side of generations: takes requests, tells them of plans, has the head run them."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import inference_pb2, peer_pb2
from macmesh_daemon.logs import get_logger
from macmesh_daemon.models import LocalModelError
from macmesh_daemon.models.tokenizer import ModelTokenizer
from macmesh_daemon.models.tokenizer_errors import LocalTokenizerError
from macmesh_daemon.node.call_errors import CallError, from_rpc_error, known_reason
from macmesh_daemon.node.live_request import LiveRequest
from macmesh_daemon.node.plan_seen import NOTHING_SERVED, plan_seen, served_model
from macmesh_daemon.node.request_intake import Intake, take_in
from macmesh_daemon.requests import RequestMachine, RequestSettings
from macmesh_daemon.requests.events import ClientGone, PlanPending, PlanReady, PlanWithdrawn, TextStopped
from macmesh_daemon.weights.errors import WeightsError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from macmesh_daemon.cluster.messages import Deployment, Epoch, ModelRef
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.node.runtime import Node
    from macmesh_daemon.requests.events import PlanSeen

_log = get_logger(part="requests")

#: Longest silence of a head, which gives a sign of life every five seconds.
HEAD_SILENCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Served:
    """What is served, and by which node's worker requests are taken."""

    epoch: Epoch
    deployment: Deployment
    model: ModelRef
    head_node_id: str


class RequestDesk:
    """Takes generation requests of clients; each ends finished, cancelled or failed with a reason.

    Args:
        node: Whose requests they are.
        tasks: Of the node; the runs are among them.
    """

    def __init__(self, node: Node, tasks: asyncio.TaskGroup) -> None:
        self._node = node
        self._tasks = tasks
        self._settings = RequestSettings(patience_seconds=node.config.request_patience_seconds)
        self._tokenizers: dict[str, ModelTokenizer] = {}
        # In the order of their acceptance, which is the order in which they are told of plans.
        self._live: dict[str, LiveRequest] = {}
        self._seen: PlanSeen | None = None

    @property
    def active(self) -> int:
        """Requests that have a token already."""
        return sum(1 for live in self._live.values() if live.has_tokens)

    @property
    def waiting(self) -> int:
        """Requests that wait for a plan, for a slot or for their prompt to be read."""
        return sum(1 for live in self._live.values() if not live.has_tokens)

    def look(self, view: ClusterView) -> None:
        """Tell the requests, the oldest first, where this node's view brings news of the plan."""
        if not self._live:
            return
        seen = plan_seen(view)
        if seen == self._seen:
            return
        self._seen = seen
        for live in list(self._live.values()):
            live.step(seen)

    async def generate(
        self, request: inference_pb2.GenerateRequest
    ) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """Responses to a request, the last with its finish reason; leaving early cancels it.

        A request whose stages are lost waits for the next plan and goes on; so does one that comes while a model
        is wanted and no plan is ready. Its patience is limited.

        Raises:
            CallError: the request is wrong, nothing is served, or patience ended.
        """
        accepted_at = self._node.clock.now()
        try:
            model = self._model(request.model_id, is_new=not request.HasField("resume"))
            tokenizer = await self.tokenizer(model)
            before = plan_seen(self._node.driver.view)
            context_tokens = before.context_tokens if isinstance(before, PlanReady) else None
            intake = await asyncio.to_thread(take_in, request, model, tokenizer, context_tokens)
        except CallError as error:
            self._node.recorder.refused(error.reason.value)
            raise
        live = self._accept(intake, model, accepted_at, tell_prompt=request.tell_prompt_tokens)
        request_id = intake.ask.request_id
        try:
            self._begin(live, intake)
            async with aclosing(live.responses()) as responses:
                async for response in responses:
                    yield response
        finally:
            live.step(ClientGone())
            if self._live.get(request_id) is live:
                del self._live[request_id]

    def _accept(
        self, intake: Intake, model: ModelRef, accepted_at: float, *, tell_prompt: bool
    ) -> LiveRequest:
        ask = intake.ask
        earlier = self._live.pop(ask.request_id, None)
        if earlier is not None:
            # The client has come back before this node noticed that it had lost it.
            earlier.step(ClientGone())
        machine = RequestMachine(ask, now=accepted_at, settings=self._settings, generated=intake.brought)
        trail = self._node.recorder.request(
            ask.request_id,
            self._epoch(),
            prompt_tokens=len(ask.prompt_token_ids),
            max_tokens=ask.max_tokens,
            resumed_from=len(intake.brought),
            attempt=intake.attempt,
        )
        live = LiveRequest(
            intake,
            machine,
            facts=inference_pb2.RequestFacts(
                request_id=ask.request_id,
                seed=intake.template.sampling.seed,
                model_id=model.model_id,
                model_digest=model.digest,
                prompt_token_ids=ask.prompt_token_ids if tell_prompt else (),
            ),
            trail=trail,
            run_on_head=self._run_on_head,
            clock=self._node.clock,
            tasks=self._tasks,
        )
        self._live[ask.request_id] = live
        return live

    def _begin(self, live: LiveRequest, intake: Intake) -> None:
        if intake.attempt:
            live.answer()
        if intake.is_over:
            live.step(TextStopped())
            return
        self._seen = plan_seen(self._node.driver.view)
        live.step(self._seen)

    def _epoch(self) -> Epoch | None:
        seen = plan_seen(self._node.driver.view)
        return seen.epoch if isinstance(seen, PlanReady) else None

    async def _run_on_head(
        self, head_node_id: str, run: peer_pb2.RunRequestRequest
    ) -> AsyncGenerator[peer_pb2.RunRequestResponse, None]:
        if head_node_id == self._node.node_id:
            async with aclosing(self._node.stage_host.run_request(run)) as tokens:
                async for token in tokens:
                    yield token
            return
        stub = self._node.peers.stub(head_node_id)
        if stub is None:
            raise CallError(Reason.PEER_UNREACHABLE, f"no address is known for the head node {head_node_id}")
        call = stub.RunRequest(run)
        try:
            while True:
                async with asyncio.timeout(HEAD_SILENCE_SECONDS):
                    read: object = await call.read()
                if not isinstance(read, peer_pb2.RunRequestResponse):  # the end of the stream
                    return
                yield read
        except TimeoutError:
            raise CallError(
                Reason.PEER_UNREACHABLE,
                f"the head node {head_node_id} was silent for {HEAD_SILENCE_SECONDS:.0f} s",
            ) from None
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        finally:
            call.cancel()

    def _model(self, model_id: str, *, is_new: bool) -> ModelRef:
        """The model that answers; an empty `model_id` takes whatever it is.

        Raises:
            CallError: nothing is wanted, or another model; or for a new request, no plan can be made.
        """
        view = self._node.driver.view
        seen = plan_seen(view)
        if isinstance(seen, PlanWithdrawn):
            raise CallError(known_reason(seen.reason), seen.message)
        is_served = view.plan is not None and bool(view.plan.deployments)
        is_refused = view.serving_state == "refused" and not is_served
        if is_new and is_refused and isinstance(seen, PlanPending):
            raise CallError(Reason.NO_MODEL_LOADED, f"the cluster serves no model: {seen.missing}")
        model = served_model(view)
        if model is None:
            raise CallError(Reason.INTERNAL, "the plan names no model")
        if model_id and model_id not in {model.model_id, model.path}:
            raise CallError(
                Reason.NO_MODEL_LOADED,
                f"the cluster serves {model.model_id!r}, not {model_id!r}",
                {"model": model.model_id},
            )
        return model

    def served(self) -> Served:
        """What the plan serves, ready or not.

        Raises:
            CallError: nothing is served.
        """
        plan = self._node.driver.view.plan
        if plan is None or plan.epoch is None or not plan.deployments:
            raise CallError(Reason.NO_MODEL_LOADED, NOTHING_SERVED)
        deployment = plan.deployments[0]
        model = deployment.model
        if model is None or not deployment.stages:
            raise CallError(Reason.INTERNAL, f"the plan {plan.epoch} names no model")
        return Served(plan.epoch, deployment, model, deployment.stages[0].node_id)

    async def tokenizer(self, model: ModelRef) -> ModelTokenizer:
        """The model's tokenizer, read once.

        Raises:
            CallError: the model or its tokenizer cannot be read here.
        """
        tokenizer = self._tokenizers.get(model.digest)
        if tokenizer is None:
            try:
                path = await self._node.weights.small_files(model)
                tokenizer = await asyncio.to_thread(ModelTokenizer.from_folder, path)
            except (LocalModelError, WeightsError) as error:
                raise CallError(Reason.MODEL_NOT_FOUND, str(error), {"model": model.model_id}) from error
            except LocalTokenizerError as error:
                raise CallError(Reason.MODEL_BROKEN, str(error), {"model": model.model_id}) from error
            self._tokenizers[model.digest] = tokenizer
        return tokenizer
