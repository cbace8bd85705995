"""Between the words of the cluster core and those of the planner. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from macmesh.reasons import Reason
from macmesh_daemon.cluster.keeping import why_not_kept
from macmesh_daemon.cluster.messages import Deployment, Ledger, LedgerEntry, LinkBuffers, ModelRef, Stage
from macmesh_placement import NodeCapacity, Reserves, cache_budget_bytes, stage_cache_cost
from macmesh_placement.tensor import shard_profile
from macmesh_rdma.options import LinkOptions

if TYPE_CHECKING:
    from collections.abc import Iterable

    from macmesh_daemon.cluster.messages import Member, Plan
    from macmesh_daemon.config import Config
    from macmesh_daemon.node.lane_choice import RdmaLinks, TransportChoice
    from macmesh_placement import Ledger as PlacementLedger
    from macmesh_placement import ModelProfile, Placement, Refusal, StageCacheCost, StagePlacement

#: A stage is linked to the one before and the one after; tail and head are linked too.
LINKS_PER_STAGE = 2

_REASONS = {
    "does_not_fit": Reason.DOES_NOT_FIT,
    "above_position_limit": Reason.CONTEXT_ABOVE_POSITION_LIMIT,
    "needs_context": Reason.INVALID_ARGUMENT,
    "stage_count": Reason.INVALID_ARGUMENT,
    "pins": Reason.INVALID_ARGUMENT,
    "unsupported_architecture": Reason.UNSUPPORTED_ARCHITECTURE,
    "no_nodes": Reason.DOES_NOT_FIT,
    "transport": Reason.TRANSPORT_UNAVAILABLE,
}


def capacities(members: Iterable[Member]) -> tuple[NodeCapacity, ...]:
    """What the planner needs to know of the members; those that told no memory are left out."""
    return tuple(
        _capacity(member)
        for member in members
        if member.facts is not None and member.facts.ram_bytes and member.facts.usable_bytes
    )


def _capacity(member: Member) -> NodeCapacity:
    facts = member.facts
    if facts is None:
        raise ValueError(f"member {member.node_id} told no facts")
    return NodeCapacity(
        node_id=member.node_id,
        host_id=facts.host_id,
        name=f"{facts.hostname}/{member.node_id[:8]}",
        ram_bytes=facts.ram_bytes,
        usable_bytes=facts.usable_bytes,
        bandwidth_gb_per_s=facts.bandwidth_gb_per_s or facts.table_bandwidth_gb_per_s,
        fused_attention=facts.chip.startswith("Apple"),
    )


def with_holdings(
    nodes: tuple[NodeCapacity, ...], current: Plan | None, model: ModelRef
) -> tuple[NodeCapacity, ...]:
    """The nodes with what their workers hold of ``model`` under the plan that runs: the planner moves few bytes.

    Nothing counts as held where the next plan could not take it up (`macmesh_daemon.cluster.keeping`).
    """
    held: dict[str, dict[str, Any]] = {
        stage.node_id: {
            "resident_layers": frozenset(range(stage.first_layer, stage.end_layer)),
            "holds_embedding": stage.first_layer == 0,
            "holds_head": stage.end_layer == deployment.layer_count,
        }
        for deployment in (current.deployments if current is not None else ())
        if deployment.model is not None
        and deployment.model.digest == model.digest
        and not why_not_kept(deployment, deployment)
        for stage in deployment.stages
    }
    return tuple(replace(node, **held.get(node.node_id, {})) for node in nodes)


def deployment_of(
    placement: Placement,
    profile: ModelProfile,
    model: ModelRef,
    links: LinkOptions,
    transport: TransportChoice,
    *,
    sync_mode: str = "safe",
    parallelism_reason: str = "",
    transfers: str = "",
) -> Deployment:
    """The placement as the cluster's document carries it, with the synchronisation that is asked for.

    Args:
        placement: What the planner found.
        profile: The one that it was found for, its caches quantised where the placement's are.
        model: The model's reference.
        links: How links are used.
        transport: What carries the activations.
        sync_mode: As configured.
        parallelism_reason: Why every layer is not split though that was allowed.
        transfers: As asked for; empty: the stages choose.
    """
    held = profile
    if placement.parallelism == "tensor":
        ways = len(placement.stages)
        held = shard_profile(profile, next(s for s in profile.tensor_shards if s.ways == ways))
    return Deployment(
        model=model,
        layer_count=placement.layer_count,
        context_tokens=placement.context_tokens,
        slots=placement.slots,
        prefill_chunk_tokens=placement.prefill_chunk_tokens,
        kv_bits=placement.kv_bits,
        stages=tuple(
            _stage(stage, stage_cache_cost(held, stage.first_layer, stage.end_layer), placement)
            for stage in placement.stages
        ),
        transport=transport.transport,
        transport_reason=transport.reason,
        device_matrix=transport.matrix,
        transport_compared=transport.compared,
        parallelism=placement.parallelism,
        parallelism_reason=parallelism_reason,
        sync_mode=sync_mode,
        transfers=transfers,
        predicted_decode_seconds=placement.predicted_decode_seconds,
        predicted_objective_seconds=placement.certificate.objective_seconds,
        link_buffers=LinkBuffers(
            num_buffers=links.num_buffers,
            frame_bytes=links.frame_bytes,
            buffer_sizes=links.buffer_sizes,
            max_outstanding=links.max_outstanding,
            spin_us=links.spin_us,
            sockets=links.sockets_per_link,
            checksum_payloads=links.checksum_payloads,
        ),
    )


def _stage(stage: StagePlacement, cost: StageCacheCost, placement: Placement) -> Stage:
    budget_bytes = cache_budget_bytes(
        cost,
        context_tokens=placement.context_tokens,
        slots=placement.slots,
        prefill_chunk_tokens=placement.prefill_chunk_tokens,
    )
    return Stage(
        index=stage.index,
        node_id=stage.node_id,
        first_layer=stage.first_layer,
        end_layer=stage.end_layer,
        ledger=_ledger(stage.ledger),
        cache_cost_json=cost.to_json_text(),
        cache_budget_bytes=budget_bytes,
    )


def _ledger(ledger: PlacementLedger) -> Ledger:
    return Ledger(
        entries=tuple(
            LedgerEntry(name=e.name, size_bytes=e.size_bytes, source=e.source) for e in ledger.entries
        ),
        usable_bytes=ledger.usable_bytes,
        headroom_bytes=ledger.headroom_bytes,
    )


def reserves(
    runtime_reserve_bytes: int,
    links: LinkOptions,
    nodes: Iterable[NodeCapacity],
    *,
    rdma: RdmaLinks | None = None,
) -> Reserves:
    """The ledger's terms that no profile knows.

    Which stages will be neighbours is not known yet: where any two of the nodes are on one machine, all links
    are charged as shared memory, the dearest but for RDMA. Of that a stage is charged the direction that it sends on,
    for the machine holds each once. Nor is it known which transport will be taken: the dearest that may be is charged.

    Args:
        runtime_reserve_bytes: As configured.
        links: As configured.
        nodes: Those that may take part.
        rdma: What RDMA may add.
    """
    hosts = [node.host_id for node in nodes]
    pool_bytes = (
        LINKS_PER_STAGE * links.shm_bytes
        if len(set(hosts)) < len(hosts)
        else links.pool_bytes("tcp", LINKS_PER_STAGE)
    )
    if rdma is not None:
        pool_bytes = max(pool_bytes, rdma.jaccl_bytes, LINKS_PER_STAGE * rdma.verbs_bytes)
    return Reserves(runtime_reserve_bytes=runtime_reserve_bytes, transport_pool_bytes=pool_bytes)


def link_options(config: Config) -> LinkOptions:
    """The links' options as the node is configured.

    Raises:
        LocalOptionError: they cannot be.
    """
    return LinkOptions(
        num_buffers=config.link_num_buffers,
        frame_bytes=config.link_frame_bytes,
        buffer_sizes=config.link_buffer_sizes,
        max_outstanding=config.link_max_outstanding,
        spin_us=config.link_spin_us,
        sockets_per_link=config.link_sockets,
        checksum_payloads=config.link_checksum_payloads,
    )


def reason_of_refusal(refusal: Refusal) -> Reason:
    """The reason that travels for a planner's refusal."""
    return _REASONS[refusal.kind]
