"""Requests through a virtual node's own head, kept on record as the request desk does."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from macmesh.v1 import inference_pb2, peer_pb2
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.supervisor.testing import fake_token

if TYPE_CHECKING:
    from support.virtual_mesh import VirtualNode


async def serve_requests(head: VirtualNode, name: str = "request") -> None:
    """One request to its end, one that its client leaves, one of a single token; the first loses a run at half."""
    for number, (max_tokens, leave_after) in enumerate(((150, None), (40, 7), (1, None))):
        epoch = head.view.active
        assert epoch is not None
        request_id = f"{name}-{number}"
        trail = head.recorder.request(request_id, epoch, prompt_tokens=2, max_tokens=max_tokens)
        runs = [(1, 0, 70), (2, 70, None)] if number == 0 else [(1, 0, leave_after)]
        for run_number, first, end in runs:
            run = peer_pb2.RunRequestRequest(
                epoch=to_proto(epoch),
                request_id=f"{request_id}/{run_number}",
                prompt_token_ids=[1, 2],
                max_tokens=max_tokens,
                generated_token_ids=[fake_token((1, 2), i) for i in range(first)],
            )
            trail.run_asked(run_number, epoch, head_node_id=head.node_id, first=first)
            async with aclosing(head.host.run_request(run)) as tokens:
                async for token in tokens:
                    trail.delivered(token.index, 1)
                    if token.finish_reason:
                        trail.finished(inference_pb2.FinishReason.Name(token.finish_reason))
                    if end is not None and token.index + 1 == end:
                        break
            if number == 0 and run_number == 1:
                trail.run_lost(run_number, epoch, "WORKER_FAILED")
        trail.cancelled()


async def take_up_request(head: VirtualNode, request_id: str, *, brought: int, attempt: int) -> None:
    """A request of another API node whose client comes here with some of its tokens; it is run to its end."""
    epoch = head.view.active
    assert epoch is not None
    trail = head.recorder.request(
        request_id, epoch, prompt_tokens=2, max_tokens=40, resumed_from=brought, attempt=attempt
    )
    run = peer_pb2.RunRequestRequest(
        epoch=to_proto(epoch),
        request_id=f"{request_id}/again",
        prompt_token_ids=[1, 2],
        max_tokens=40,
        generated_token_ids=[fake_token((1, 2), i) for i in range(brought)],
    )
    trail.run_asked(1, epoch, head_node_id=head.node_id, first=brought)
    async with aclosing(head.host.run_request(run)) as tokens:
        async for token in tokens:
            trail.delivered(token.index, 1)
            if token.finish_reason:
                trail.finished(inference_pb2.FinishReason.Name(token.finish_reason))
