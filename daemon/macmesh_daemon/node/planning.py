"""Profiles models and computes plans for the core, away from the event loop."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, cast, get_args

from macmesh.reasons import Reason
from macmesh_daemon.cluster import events as ev
from macmesh_daemon.cluster.messages import ModelRef, WantedModel
from macmesh_daemon.logs import get_logger
from macmesh_daemon.models import LocalModelError, LocalModelNotFoundError
from macmesh_daemon.node.call_errors import CallError
from macmesh_daemon.node.lane_choice import choose_transport, rdma_links
from macmesh_daemon.node.model_finder import ModelFinder
from macmesh_daemon.node.read_ahead import fetch_ahead, missing_layers, read_ahead
from macmesh_daemon.node.translation import (
    capacities,
    deployment_of,
    link_options,
    reason_of_refusal,
    reserves,
    with_holdings,
)
from macmesh_daemon.plan_ask import PlanAsk, answer_json
from macmesh_placement import LocalPlacementError, ModelProfile, Objective, PlanRequest, Refusal, plan
from macmesh_placement.kvbits import OFFERED_KV_BITS
from macmesh_placement.tensor_reason import why_no_tensor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from pathlib import Path

    from macmesh.v1 import cluster_pb2
    from macmesh_daemon.cluster import effects as fx
    from macmesh_daemon.cluster.messages import Deployment, Member, NodeFacts, Plan, Stage
    from macmesh_daemon.cluster.view import ClusterView
    from macmesh_daemon.config import Config
    from macmesh_daemon.models import ModelFolder
    from macmesh_daemon.node.lane_choice import Failures, RdmaLinks, TransportChoice
    from macmesh_daemon.node.peers import PeerPool
    from macmesh_daemon.node.read_ahead import Provide
    from macmesh_daemon.weights.hub_source import HubSource
    from macmesh_daemon.weights.library import Library
    from macmesh_placement import NodeCapacity, Placement, Reserves

_log = get_logger(part="planning")


class Planning:
    """Answers the core's ComputePlan and CheckPrepare, and the clients' dry runs."""

    def __init__(
        self,
        *,
        config: Config,
        node_id: str,
        facts: Callable[[], NodeFacts],
        peers: PeerPool,
        library: Library,
        hub: HubSource,
        obstacle: Callable[[ModelRef, int], Awaitable[str]],
        provide: Provide,
        notify: Callable[[ev.Event], None],
        active_plan: Callable[[], Plan | None] = lambda: None,
    ) -> None:
        self._config = config
        self._links = link_options(config)
        self._node_id = node_id
        self._facts = facts
        self._obstacle = obstacle
        self._provide = provide
        self._notify = notify
        #: Where models are.
        self.models = ModelFinder(config=config, node_id=node_id, peers=peers, library=library, hub=hub)
        self._active_plan = active_plan

    def resolve_path(self, model_id: str, path: str, digest: str) -> Path:
        """This machine's folder of a model with that digest. Reads the headers of its files: call in a thread.

        Raises:
            LocalModelError: there is none, it is broken, or its content differs.
        """
        return self._matching_folder(ModelRef(model_id=model_id, path=path, digest=digest)).path

    async def profile(self, model_id: str, members: tuple[str, ...]) -> tuple[ModelRef, ModelProfile]:
        """See `ModelFinder.profile`."""
        return await self.models.profile(model_id, members)

    def _matching_folder(self, model: ModelRef) -> ModelFolder:
        return self.models.folder(model)

    async def wanted(self, request: cluster_pb2.LoadModelRequest, view: ClusterView) -> WantedModel:
        """What a load asks for, its model resolved.

        Raises:
            CallError: the request is wrong, no member has the model, or its caches cannot be quantised.
        """
        model_id = _checked_model_id(request.model_id)
        objective = _checked_objective(request.objective)
        kv_bits = _checked_kv_bits(request.kv_bits)
        transfers = _checked_transfers(request.transfers)
        model, profile = await self.profile(model_id, _member_ids(view))
        _quantised(profile, kv_bits)
        return WantedModel(
            model=model,
            context_tokens=request.context_tokens,
            slots=request.slots or 1,
            objective=objective,
            stage_count=request.stage_count,
            kv_bits=kv_bits,
            allow_tensor_parallel=request.allow_tensor_parallel,
            transfers=transfers,
        )

    async def dry_run(self, request: cluster_pb2.PlanModelRequest, view: ClusterView) -> tuple[bool, str]:
        """Whether the model fits the members that live now, and the plan or refusal as JSON.

        Raises:
            CallError: the request is wrong or no member has the model.
        """
        model_id = _checked_model_id(request.model_id)
        ask = ask_of(request, default_chunk_tokens=self._config.prefill_chunk_tokens)
        _, profile = await self.profile(model_id, _member_ids(view))
        members = view.document.members if view.document else ()
        alive = tuple(m for m in members if view.liveness.get(m.node_id) in {"alive", "suspect"})
        nodes = capacities(alive)
        rdma = self._rdma_links(alive, nodes, view.transport_failures)
        try:
            asked = ask.request(
                profile,
                nodes,
                links=rdma.links,
                names={m.node_id: [m.facts.hostname] if m.facts else [] for m in members},
                reserves=self._reserves(nodes, rdma),
            )
            result = await asyncio.to_thread(plan, asked)
            carried = self._carried(result, alive, view.transport_failures)
            if result.feasible and isinstance(carried, Refusal):
                return False, json.dumps(carried.to_json())
            answer = await asyncio.to_thread(answer_json, asked, result, explain=request.explain)
        except LocalPlacementError as error:
            raise CallError(Reason.INVALID_ARGUMENT, str(error)) from error
        if not isinstance(carried, Refusal) and carried[1].reason:
            answer["transport"] = carried[1].to_json()
        return result.feasible, json.dumps(answer)

    async def compute(self, effect: fx.ComputePlan) -> None:
        """Answer a ComputePlan with PlanComputed or PlanRefused, whatever happens."""
        wanted = effect.wanted
        model = wanted.model or ModelRef()
        try:
            # What the others have under the name may have changed since: the digest says what is wanted.
            found = await self.models.profile_by_digest(model.digest) or await self.profile(
                model.path or model.model_id, tuple(m.node_id for m in effect.members)
            )
            profile = found[1]
            profile = _quantised(profile, wanted.kv_bits)
            result = await self._plan(profile, wanted, effect)
        except CallError as error:
            self._refuse(effect.request_id, error.reason, error.message)
            return
        except Exception as error:  # noqa: BLE001  the core must get an answer, whatever breaks
            _log.exception("planning failed", model=model.model_id)
            self._refuse(effect.request_id, Reason.INTERNAL, f"planning failed: {error}")
            return
        if isinstance(result, Refusal):
            self._notify(
                ev.PlanRefused(
                    request_id=effect.request_id,
                    reason=reason_of_refusal(result),
                    refusal_json=json.dumps(result.to_json()),
                )
            )
            return
        placement, transport, no_tensor = result
        if no_tensor:
            _log.info("layers are not split over nodes", reason=no_tensor)
        if transport.reason:
            _log.info("transport chosen", transport=transport.transport, reason=transport.reason)
        deployment = deployment_of(
            placement,
            profile,
            model,
            self._links,
            transport,
            sync_mode=self._config.sync_mode,
            parallelism_reason=no_tensor,
            transfers=wanted.transfers,
        )
        self._notify(ev.PlanComputed(request_id=effect.request_id, deployment=deployment))

    async def check_prepare(self, effect: fx.CheckPrepare) -> None:
        """Answer a CheckPrepare: is the model here, with that content, and does the stage fit?"""
        epoch = effect.plan.epoch
        if epoch is None:
            raise ValueError("a plan to prepare has an epoch")
        until = asyncio.get_running_loop().time() + effect.read_ahead_seconds
        reason = ""
        found = effect.plan.stage_of(self._node_id)
        if found is not None:
            deployment, stage = found
            model = deployment.model or ModelRef()
            folder: ModelFolder | None = None
            try:
                folder = await asyncio.to_thread(self._matching_folder, model)
            except LocalModelNotFoundError as error:
                if obstacle := await self._obstacle(model, _weights_bytes(stage)):
                    reason = f"{error}; {obstacle}"
            except LocalModelError as error:
                reason = str(error)
            needed = sum(entry.size_bytes for entry in stage.ledger.entries) if stage.ledger else 0
            usable = self._facts().usable_bytes
            if not reason and deployment.kv_bits not in (0, *OFFERED_KV_BITS):
                reason = f"this node has no caches of {deployment.kv_bits} bits, as the plan wants"
            if not reason and deployment.parallelism not in {"", "pipeline", "tensor"}:
                reason = f"this node has no parallelism {deployment.parallelism!r}, as the plan wants"
            if not reason and needed > usable:
                reason = f"stage {stage.index} needs {needed} bytes, this node may use {usable}"
            if not reason and effect.read_ahead_seconds > 0:
                await self._bring_ahead(effect.plan, deployment, stage, folder, until)
        self._notify(ev.PrepareChecked(epoch=epoch, ok=not reason, reason=reason))

    async def _bring_ahead(
        self, plan: Plan, deployment: Deployment, stage: Stage, folder: ModelFolder | None, until: float
    ) -> None:
        """Use the time in which another plan still serves; `until` is of the event loop's clock."""
        epoch = str(plan.epoch)
        if folder is None:
            fetched_bytes = await fetch_ahead(self._provide, deployment, stage.index, until)
            _log.info("weights fetched ahead", epoch=epoch, size_bytes=fetched_bytes)
            return
        layers = missing_layers(self._active_plan(), plan, self._node_id)
        left_seconds = until - asyncio.get_running_loop().time()
        read_bytes = await asyncio.to_thread(read_ahead, folder, layers, left_seconds)
        _log.info("weights read ahead", epoch=epoch, layers=len(layers), size_bytes=read_bytes)

    async def _plan(
        self, profile: ModelProfile, wanted: WantedModel, effect: fx.ComputePlan
    ) -> tuple[Placement, TransportChoice, str] | Refusal:
        """The plan, what carries it, and why it is no split of every layer where one was allowed."""
        nodes = with_holdings(capacities(effect.members), effect.current, wanted.model or ModelRef())
        failures = {(f.node_ids, f.transport): f.reason for f in effect.transport_failures}
        rdma = self._rdma_links(effect.members, nodes, failures)
        request = PlanRequest(
            profile=profile,
            nodes=nodes,
            context_tokens=wanted.context_tokens,
            slots=wanted.slots or 1,
            prefill_chunk_tokens=self._config.prefill_chunk_tokens,
            objective=_checked_objective(wanted.objective),
            stage_count=wanted.stage_count,
            allow_tensor_parallel=wanted.allow_tensor_parallel,
            links=rdma.links,
            reserves=self._reserves(nodes, rdma),
        )
        found = await asyncio.to_thread(plan, request)
        carried = self._carried(found, effect.members, failures)
        if isinstance(carried, Refusal):
            return carried
        placement, transport = carried
        return placement, transport, await asyncio.to_thread(why_no_tensor, request, placement)

    def _rdma_links(
        self,
        members: Iterable[Member],
        nodes: Iterable[NodeCapacity],
        failures: Failures,
    ) -> RdmaLinks:
        present = {node.node_id for node in nodes}
        return rdma_links(
            self._config.transport, [m for m in members if m.node_id in present], failures, self._links
        )

    def _reserves(self, nodes: tuple[NodeCapacity, ...], rdma: RdmaLinks) -> Reserves:
        return reserves(self._config.runtime_reserve_bytes, self._links, nodes, rdma=rdma)

    def _carried(
        self,
        result: Placement | Refusal,
        members: Iterable[Member],
        failures: Failures,
    ) -> tuple[Placement, TransportChoice] | Refusal:
        """The plan and what carries it; the refusal where there is none, or nothing can."""
        if isinstance(result, Refusal):
            return result
        by_id = {member.node_id: member for member in members}
        stages = [by_id[stage.node_id] for stage in result.stages]
        nodes = frozenset(member.node_id for member in stages)
        just_here = {
            transport: reason for (between, transport), reason in failures.items() if between == nodes
        }
        choice = choose_transport(
            self._config.transport, stages, just_here, all_pairs=result.parallelism == "tensor"
        )
        return choice if isinstance(choice, Refusal) else (result, choice)

    def _refuse(self, request_id: int, reason: Reason, message: str) -> None:
        refusal = json.dumps(
            {"format": "macmesh-plan/1", "feasible": False, "kind": reason.lower(), "message": message}
        )
        self._notify(ev.PlanRefused(request_id=request_id, reason=reason, refusal_json=refusal))


def ask_of(request: cluster_pb2.PlanModelRequest, *, default_chunk_tokens: int) -> PlanAsk:
    """A dry run's request as an ask.

    Raises:
        CallError: a value is impossible.
    """
    _checked_kv_bits(request.kv_bits)
    if not 0 <= request.prefill_share < 1:  # NaN fails too
        raise CallError(
            Reason.INVALID_ARGUMENT,
            f"prefill_share must be at least 0 and below 1, not {request.prefill_share:g}",
            {"field": "prefill_share"},
        )
    return PlanAsk(
        context_tokens=request.context_tokens,
        slots=request.slots or 1,
        objective=_checked_objective(request.objective),
        stage_count=request.stage_count,
        excluded_nodes=tuple(request.excluded_nodes),
        required_nodes=tuple(request.required_nodes),
        head_node=request.head_node,
        tail_node=request.tail_node,
        decode_context_tokens=request.decode_context_tokens,
        prefill_share=request.prefill_share,
        kv_bits=request.kv_bits,
        prefill_chunk_tokens=request.prefill_chunk_tokens or default_chunk_tokens,
        allow_tensor_parallel=request.allow_tensor_parallel,
    )


def _member_ids(view: ClusterView) -> tuple[str, ...]:
    return tuple(m.node_id for m in view.document.members) if view.document else ()


def _weights_bytes(stage: Stage) -> int:
    entries = stage.ledger.entries if stage.ledger else ()
    return sum(entry.size_bytes for entry in entries if entry.name in {"weights", "embedding", "head"})


def _checked_model_id(model_id: str) -> str:
    if not model_id:
        raise CallError(
            Reason.INVALID_ARGUMENT, "model_id is empty: name a model folder", {"field": "model_id"}
        )
    return model_id


def _checked_kv_bits(kv_bits: int) -> int:
    if kv_bits not in (0, *OFFERED_KV_BITS):
        raise CallError(
            Reason.INVALID_ARGUMENT, f"kv_bits must be 4 or 8, not {kv_bits}", {"field": "kv_bits"}
        )
    return kv_bits


def _checked_transfers(transfers: str) -> str:
    if transfers not in ("", "auto", "host", "graph"):
        raise CallError(
            Reason.INVALID_ARGUMENT,
            f"transfers must be auto, host or graph, not {transfers!r}",
            {"field": "transfers"},
        )
    return "" if transfers == "auto" else transfers


def _quantised(profile: ModelProfile, kv_bits: int) -> ModelProfile:
    """The profile with caches of so many bits.

    Raises:
        CallError: this model's caches cannot be quantised, and why.
    """
    try:
        return profile.with_kv_bits(kv_bits) if kv_bits else profile
    except LocalPlacementError as error:
        raise CallError(
            Reason.INVALID_ARGUMENT,
            f"the caches of {profile.model_id} cannot be of {kv_bits} bits: {error}",
            {"field": "kv_bits"},
        ) from error


def _checked_objective(objective: str) -> Objective:
    chosen = objective or "balanced"
    if chosen not in get_args(Objective):
        raise CallError(
            Reason.INVALID_ARGUMENT,
            f"objective must be one of {', '.join(get_args(Objective))}, not {chosen!r}",
            {"field": "objective"},
        )
    return cast("Objective", chosen)
