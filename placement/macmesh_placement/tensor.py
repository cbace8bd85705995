"""Tensor parallelism: every layer split over equal nodes, as a candidate next to the pipelines."""

from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from macmesh_placement.capacity import NodeCapacity
from macmesh_placement.costs import Mixture, Rates, layer_seconds, outer_seconds, reduction_seconds
from macmesh_placement.hops import LinkMap
from macmesh_placement.ledger import Ledger, LedgerEntry, StageDemand, stage_ledger
from macmesh_placement.links import Link
from macmesh_placement.loads import whole_load_bytes
from macmesh_placement.profile import ModelProfile
from macmesh_placement.request import PlanRequest
from macmesh_placement.shards import TensorShard

#: Nodes are equal where bandwidth and compute differ by no more than this share of the larger.
EQUAL_WITHIN = 0.05
#: Most groups of nodes that are looked at for one number of ways; beyond, only neighbours in speed.
_MOST_GROUPS = 1000
#: What `Reserves.transport_pool_bytes` is for. Every rank is joined to every other one.
_PEERS_OF_A_STAGE = 2


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """One way to split every layer.

    Attributes:
        shard: What each node holds.
        nodes: The nodes by number; the first is the one of rank 0.
        link: What joins any two of them.
        stage_seconds: Seconds of one token on each node, reductions aside.
        reduction_seconds: Seconds of one token in the reductions.
        loads: Bytes that each node has to load.
    """

    shard: TensorShard
    nodes: tuple[int, ...]
    link: Link
    stage_seconds: tuple[float, ...]
    reduction_seconds: float
    loads: tuple[int, ...]

    @property
    def latency_seconds(self) -> float:
        """Seconds of one token; every node is busy for all of it."""
        return max(self.stage_seconds) + self.reduction_seconds

    @property
    def load_bytes(self) -> int:
        """Bytes to load on all nodes."""
        return sum(self.loads)


def shard_profile(profile: ModelProfile, shard: TensorShard) -> ModelProfile:
    """What one of the nodes holds, as a model of its own; its tied head copies all of its embedding."""
    return replace(
        profile,
        layers=shard.layers,
        embedding_bytes=shard.embedding_bytes,
        norm_bytes=shard.norm_bytes,
        head_bytes=shard.head_bytes,
        head_copy_bytes=None,
        shared_bytes=shard.shared_bytes,
        tensor_shards=(),
    )


def tensor_ledger(
    profile: ModelProfile, shard: TensorShard, demand: StageDemand, node: NodeCapacity
) -> Ledger:
    """The ledger of one of the nodes: the shard as a whole model, and a transport pool.

    Sampling is charged on every node: each runs the whole model's head on its own.
    """
    whole = stage_ledger(
        shard_profile(profile, shard),
        demand,
        first_layer=0,
        end_layer=profile.layer_count,
        usable_bytes=node.usable_bytes,
        fused_attention=node.fused_attention,
    )
    peers = max(_PEERS_OF_A_STAGE, shard.ways - 1)
    pool = LedgerEntry(
        name="transport_pool",
        size_bytes=-(-demand.reserves.transport_pool_bytes * peers // _PEERS_OF_A_STAGE),
        source=f"send and receive buffers for {peers} peers; {shard.ways} ways",
    )
    place = next(
        (i for i, entry in enumerate(whole.entries) if entry.name in {"allocator_slack", "runtime_reserve"}),
        len(whole.entries),
    )
    added = (pool,) if pool.size_bytes else ()
    return replace(whole, entries=(*whole.entries[:place], *added, *whole.entries[place:]))


def tensor_plans(
    request: PlanRequest,
    nodes: tuple[NodeCapacity, ...],
    rates: Rates,
    demand: StageDemand,
    mixture: Mixture,
    links: LinkMap,
    host_budgets: dict[str, int],
) -> list[TensorPlan]:
    """Every group of equal nodes that can share every layer, pins respected.

    Args:
        request: Its profile's shards, pins and stage count: a forced count must be the number of ways.
        nodes: The nodes.
        rates: What they were measured at.
        demand: How they will be used.
        mixture: Which tokens are timed.
        links: The links between the nodes.
        host_budgets: See `PlanRequest.host_budgets_bytes`.
    """
    plans = []
    for shard in request.profile.tensor_shards:
        if shard.ways < 2 or request.stage_count not in {0, shard.ways}:  # noqa: PLR2004  one way is no split
            continue
        needs = {
            fused: tensor_ledger(
                request.profile, shard, demand, replace(nodes[0], fused_attention=fused)
            ).total_bytes
            for fused in {node.fused_attention for node in nodes}
        }
        fitting = [i for i, node in enumerate(nodes) if needs[node.fused_attention] <= node.usable_bytes]
        for group in _groups(fitting, nodes, shard.ways):
            link = links.common_link(list(group))
            if (
                link is not None
                and are_equal([nodes[index] for index in group])
                and request.pinned_node_ids <= {nodes[index].node_id for index in group}
                and _hosts_hold([nodes[index] for index in group], needs, host_budgets)
            ):
                plans.append(
                    _plan(request, shard, nodes, rates, _head_first(request, nodes, group), link, mixture)
                )
    return plans


def _groups(fitting: list[int], nodes: tuple[NodeCapacity, ...], ways: int) -> list[tuple[int, ...]]:
    count = 1.0
    for step in range(ways):
        count *= (len(fitting) - step) / (step + 1)
    if count <= _MOST_GROUPS:
        return list(combinations(fitting, ways))
    by_speed = sorted(
        fitting, key=lambda index: (nodes[index].fused_attention, nodes[index].bandwidth_gb_per_s, index)
    )
    return [tuple(sorted(by_speed[start : start + ways])) for start in range(len(by_speed) - ways + 1)]


def are_equal(group: list[NodeCapacity]) -> bool:
    """Whether nodes are equal enough to share every layer."""
    if len({node.fused_attention for node in group}) > 1:
        return False
    for rates in (
        [node.bandwidth_gb_per_s for node in group],
        [node.flops_tflops or 0.0 for node in group],
    ):
        if max(rates) - min(rates) > EQUAL_WITHIN * max(rates):
            return False
    return True


def _hosts_hold(group: list[NodeCapacity], needs: dict[bool, int], budgets: dict[str, int]) -> bool:
    return all(
        sum(needs[node.fused_attention] for node in group if node.host == host) <= budget
        for host, budget in budgets.items()
    )


def _head_first(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], group: tuple[int, ...]
) -> tuple[int, ...]:
    """The pinned head first and the pinned tail last; every node samples, so that any may be either."""

    def rank(index: int) -> tuple[bool, bool, int]:
        node_id = nodes[index].node_id
        is_head = node_id == request.head_node_id
        return (not is_head, node_id == request.tail_node_id and not is_head, index)

    return tuple(sorted(group, key=rank))


def _plan(
    request: PlanRequest,
    shard: TensorShard,
    nodes: tuple[NodeCapacity, ...],
    rates: Rates,
    group: tuple[int, ...],
    link: Link,
    mixture: Mixture,
) -> TensorPlan:
    profile = shard_profile(request.profile, shard)
    rates = Rates(rates.bandwidth[list(group)], rates.compute[list(group)])
    width = -(-profile.hidden_size // shard.ways)
    embedding, head = outer_seconds(profile, rates, mixture)
    seconds = layer_seconds(profile.layers, rates, mixture, width).sum(axis=1) + embedding + head
    return TensorPlan(
        shard=shard,
        nodes=group,
        link=link,
        stage_seconds=tuple(float(value) for value in np.asarray(seconds)),
        reduction_seconds=reduction_seconds(
            shard.ways, link, shard.reductions_per_step, shard.reduced_bytes_per_token, mixture
        ),
        loads=tuple(whole_load_bytes(profile, nodes[index], shard.ways) for index in group),
    )


def retimed(
    request: PlanRequest, nodes: tuple[NodeCapacity, ...], rates: Rates, plan: TensorPlan, mixture: Mixture
) -> TensorPlan:
    """The same plan, timed for another mixture of tokens."""
    return _plan(request, plan.shard, nodes, rates, plan.nodes, plan.link, mixture)
