"""Memory and time of every stage of the running plan, asked of the node of each."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import cluster_pb2, peer_pb2
from macmesh_daemon.node.call_errors import CallError, from_rpc_error
from macmesh_daemon.node.codec import to_proto

if TYPE_CHECKING:
    from macmesh_daemon.cluster.messages import Epoch, Stage
    from macmesh_daemon.node.runtime import Node

#: A worker answers between two steps, and the prefill step of a long chunk takes seconds.
WORKER_DEADLINE_SECONDS = 5.0
#: The worker's deadline, and the way there and back.
NODE_DEADLINE_SECONDS = 6.0
#: A node answers from memory.
NEWEST_DEADLINE_SECONDS = 0.5


async def stage_stats(node: Node) -> cluster_pb2.GetStageStatsResponse:
    """The figures of all stages; one whose node or worker gives none is listed with the reason.

    Raises:
        CallError: nothing is served.
    """
    served = node.requests.served()
    plan = served.deployment
    tokenizer = await node.requests.tokenizer(served.model)
    async with asyncio.TaskGroup() as tasks:
        asked = [
            tasks.create_task(_stage(node, served.epoch, stage), name=f"stats of stage {stage.index}")
            for stage in plan.stages
        ]
    return cluster_pb2.GetStageStatsResponse(
        epoch=to_proto(served.epoch),
        model=to_proto(served.model),
        context_tokens=plan.context_tokens,
        slots=plan.slots,
        prefill_chunk_tokens=plan.prefill_chunk_tokens,
        vocabulary_tokens=tokenizer.vocab_size,
        stages=[task.result() for task in asked],
    )


async def _stage(node: Node, epoch: Epoch, stage: Stage) -> cluster_pb2.MeasuredStage:
    measured = cluster_pb2.MeasuredStage(stage=to_proto(stage))
    try:
        stats = await _ask(node, epoch, stage.node_id)
    except CallError as error:
        measured.reason = error.message
        return measured
    measured.stats.CopyFrom(stats)
    if stats.age_seconds > 0:
        measured.reason = (
            f"the worker is in a step that takes longer than {WORKER_DEADLINE_SECONDS:g} s; these figures are "
            f"{stats.age_seconds:.1f} s old"
        )
    return measured


async def newest_stats(node: Node, epoch: Epoch, node_id: str) -> peer_pb2.StageStats:
    """The newest figures that the worker of a node has given, with their age; the worker is not asked.

    Raises:
        CallError: there are none, or the node does not answer.
    """
    if node_id == node.node_id:
        return node.stage_host.newest_stats(epoch)
    request = peer_pb2.GetOwnStageStatsRequest(epoch=to_proto(epoch), newest=True)
    return await _ask_peer(node, node_id, request, NEWEST_DEADLINE_SECONDS)


async def _ask(node: Node, epoch: Epoch, node_id: str) -> peer_pb2.StageStats:
    if node_id == node.node_id:
        return await node.stage_host.stats(epoch, WORKER_DEADLINE_SECONDS)
    request = peer_pb2.GetOwnStageStatsRequest(epoch=to_proto(epoch))
    return await _ask_peer(node, node_id, request, NODE_DEADLINE_SECONDS)


async def _ask_peer(
    node: Node, node_id: str, request: peer_pb2.GetOwnStageStatsRequest, deadline_seconds: float
) -> peer_pb2.StageStats:
    stub = node.peers.stub(node_id)
    if stub is None:
        raise CallError(Reason.PEER_UNREACHABLE, f"no address is known for node {node_id}")
    try:
        response = await stub.GetOwnStageStats(request, timeout=deadline_seconds)
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error
    return response.stats
