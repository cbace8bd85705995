"""Checks a start command before anything is done with it."""

from typing import Literal

from macmesh.v1 import lane_pb2, types_pb2
from macmesh_daemon.worker.errors import LocalStartError
from macmesh_placement.kvbits import OFFERED_KV_BITS

Transport = Literal["auto", "shm", "tcp", "verbs"]

JACCL = "jaccl"
VERBS = "verbs"
RDMA = frozenset({VERBS, JACCL})
"""What needs the plan's matrix of devices."""
TRANSFERS = ("auto", "host", "graph")
TRANSPORTS: tuple[str, ...] = ("auto", "shm", "tcp", VERBS, JACCL)


TENSOR = "tensor"
PARALLELISMS: tuple[str, ...] = ("", "pipeline", TENSOR)


def is_tensor_parallel(deployment: types_pb2.Deployment) -> bool:
    """Whether every stage has its part of every layer."""
    return deployment.parallelism == TENSOR


def check_start(start: lane_pb2.StartStage) -> None:
    """Lets a start command pass that a worker can follow.

    Raises:
        LocalStartError: it makes no sense; the message names the field.
    """
    deployment = start.deployment
    stages = deployment.stages
    if not 0 <= start.stage_index < len(stages):
        raise LocalStartError(f"stage_index is {start.stage_index} in a plan of {len(stages)} stages")
    if deployment.context_tokens == 0 or deployment.slots == 0 or deployment.prefill_chunk_tokens == 0:
        raise LocalStartError("context_tokens, slots and prefill_chunk_tokens must all be 1 or more")
    if deployment.kv_bits not in (0, *OFFERED_KV_BITS):
        raise LocalStartError(f"kv_bits is {deployment.kv_bits}; this version has {OFFERED_KV_BITS}")
    if deployment.parallelism not in PARALLELISMS:
        raise LocalStartError(
            f"parallelism is {deployment.parallelism!r}; this version has pipeline and {TENSOR}"
        )
    if is_tensor_parallel(deployment):
        _check_ranks(deployment)
    else:
        _check_ranges(deployment)
    if not start.bind_host:
        raise LocalStartError("bind_host is empty")
    if start.step_deadline_seconds <= 0:
        raise LocalStartError(f"step_deadline_seconds is {start.step_deadline_seconds:g}; it must be above 0")
    if len(stages) > 1:
        _check_transport(deployment)


def _check_ranks(deployment: types_pb2.Deployment) -> None:
    if len(deployment.stages) < 2:  # noqa: PLR2004  one is no split
        raise LocalStartError("a tensor-parallel plan has two ranks or more")
    for index, stage in enumerate(deployment.stages):
        if stage.index != index or (stage.first_layer, stage.end_layer) != (0, deployment.layer_count):
            raise LocalStartError(
                f"rank {index} has layers {stage.first_layer} to {stage.end_layer}; each must have its part of all "
                f"{deployment.layer_count}"
            )


def _check_ranges(deployment: types_pb2.Deployment) -> None:
    expected = 0
    for index, stage in enumerate(deployment.stages):
        if stage.index != index or stage.first_layer != expected or stage.end_layer <= stage.first_layer:
            raise LocalStartError(
                f"stage {index} has layers {stage.first_layer} to {stage.end_layer}; layer {expected} should "
                "be its first"
            )
        expected = stage.end_layer
    if expected != deployment.layer_count:
        raise LocalStartError(f"the stages end at layer {expected} of {deployment.layer_count}")


def _check_transport(deployment: types_pb2.Deployment) -> None:
    if deployment.transfers not in ("", *TRANSFERS):
        raise LocalStartError(
            f"transfers is {deployment.transfers!r}; this version has {', '.join(TRANSFERS)}"
        )
    if deployment.transfers == "graph" and deployment.transport == JACCL:
        raise LocalStartError(
            "transfers in the graph need links of our own, not jaccl; load with transfers auto or host"
        )
    if deployment.transport not in TRANSPORTS:
        raise LocalStartError(
            f"transport is {deployment.transport!r}; this version has {', '.join(TRANSPORTS)} for more than one stage"
        )
    if deployment.transport in RDMA:
        size, rows = len(deployment.stages), deployment.device_matrix.rows
        if len(rows) != size or any(len(row.cells) != size for row in rows):
            raise LocalStartError(f"device_matrix is not one of {size} stages")
