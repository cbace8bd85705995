"""How much memory each demo node may use, so that the unmodified planner needs all of them. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.demo.errors import LocalDemoSetupError
from macmesh_placement import LocalPlanRequestError, PlanRequest, Reserves, usable_for_stage_count
from macmesh_rdma.options import LinkOptions

if TYPE_CHECKING:
    from macmesh_placement import ModelProfile

DEMO_LINKS = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=2)
"""The default buffers are larger than the demo's whole model."""


def demo_reserves(runtime_reserve_bytes: int, *, cables: int = 0) -> Reserves:
    """What the planner charges nodes of one machine with `DEMO_LINKS`.

    Args:
        runtime_reserve_bytes: As configured.
        cables: RDMA cables between every two of them, where links go over those.
    """
    link_bytes = max(DEMO_LINKS.shm_bytes, DEMO_LINKS.verbs_bytes(cables) if cables else 0)
    return Reserves(runtime_reserve_bytes=runtime_reserve_bytes, transport_pool_bytes=2 * link_bytes)


def demo_link_settings() -> dict[str, int]:
    """`DEMO_LINKS` as settings of a daemon."""
    return {
        "link_num_buffers": DEMO_LINKS.num_buffers,
        "link_frame_bytes": DEMO_LINKS.frame_bytes,
        "link_buffer_sizes": DEMO_LINKS.buffer_sizes,
    }


def usable_bytes_for(profile: ModelProfile, node_count: int, context_tokens: int, reserves: Reserves) -> int:
    """Usable memory with which `node_count` equal nodes hold the model and one fewer do not.

    Half-way between the two, so that a byte of difference decides nothing.

    Raises:
        LocalDemoSetupError: the model is too small, or too unevenly layered, to need that many nodes.
    """
    request = PlanRequest(profile=profile, nodes=(), context_tokens=context_tokens, reserves=reserves)
    try:
        found = usable_for_stage_count(profile, request.demand(), node_count, fused_attention=False)
    except LocalPlanRequestError as error:
        raise LocalDemoSetupError(f"{error}; or ask for fewer nodes") from error
    return found.middle_bytes
