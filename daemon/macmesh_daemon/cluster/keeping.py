"""Whether a worker's process may live on from one plan to the next. Pure."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .messages import Deployment

BOUND_TRANSPORT = "jaccl"
"""The transport that a process can set up once."""


def why_not_kept(before: "Deployment", after: "Deployment") -> str:
    """Why a process that ran a stage of ``before`` cannot take up one of ``after``; "" where it can.

    What the process itself is made of must stay: the weights that it holds are those of one model, MLX reads the
    synchronisation when it is imported, and its own RDMA can be set up once in a process.
    """
    if before.model is None or after.model is None or before.model.digest != after.model.digest:
        return "another model is served"
    if not after.model.digest:
        return "the model's content is not pinned by a digest"
    if "tensor" in {before.parallelism, after.parallelism}:
        return "a part of every layer is of no use to another plan"
    if BOUND_TRANSPORT in {before.transport, after.transport}:
        return f"{BOUND_TRANSPORT} cannot be rebuilt in a living process"
    if before.sync_mode != after.sync_mode:
        return f"synchronisation {after.sync_mode or 'safe'} is asked for in place of {before.sync_mode or 'safe'}"
    return ""
