"""Requests through a virtual node's own head, kept on record as the request desk does."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from macmesh.v1 import inference_pb2, peer_pb2
from macmesh_daemon.node.codec import to_proto

if TYPE_CHECKING:
    from support.virtual_mesh import VirtualNode


async def serve_requests(head: VirtualNode, name: str = "request") -> None:
    """One request to its end, one that its client leaves, one of a single token."""
    for number, (max_tokens, leave_after) in enumerate(((150, None), (40, 7), (1, None))):
        epoch = head.view.active
        assert epoch is not None
        run = peer_pb2.RunRequestRequest(
            epoch=to_proto(epoch),
            request_id=f"{name}-{number}",
            prompt_token_ids=[1, 2],
            max_tokens=max_tokens,
        )
        trail = head.recorder.request(run.request_id, epoch, prompt_tokens=2, max_tokens=max_tokens)
        async with aclosing(head.host.run_request(run)) as tokens:
            async for token in tokens:
                trail.delivered(token.index, 1)
                if token.finish_reason:
                    trail.finished(inference_pb2.FinishReason.Name(token.finish_reason))
                if leave_after is not None and token.index + 1 == leave_after:
                    break
        trail.cancelled()
