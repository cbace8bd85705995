"""Which provider carries a whole group: the group provider ``jaccl``, or a link provider for each pair. Pure."""

import dataclasses
from typing import Literal

from macmesh_rdma.jaccl.device_matrix import DeviceMatrix, MatrixRefusal

RequestedTransport = Literal["auto", "links", "jaccl"]


@dataclasses.dataclass(frozen=True)
class GroupChoice:
    """What was chosen, for status.

    Attributes:
        provider: "jaccl" for the whole group, or "links": each pair then has a link of its own.
        reason: why, for people.
        refused: the candidates that were not taken and why, in order of preference.
        matrix: the devices where jaccl was chosen.
    """

    provider: Literal["jaccl", "links"]
    reason: str
    refused: tuple[tuple[str, str], ...] = ()
    matrix: DeviceMatrix | None = None


def choose_group(
    requested: RequestedTransport,
    devices: DeviceMatrix | MatrixRefusal,
    *,
    jaccl_built: bool,
    all_pairs: bool = False,
    self_test_failure: str = "",
) -> GroupChoice | MatrixRefusal:
    """Chooses for a group.

    jaccl is taken only where it was asked for or where everything speaks for it: MLX has it, the devices make a
    matrix of the shape that is needed, and its self-test has not failed.

    Args:
        requested: "jaccl" takes it or nothing, "links" never takes it.
        devices: the matrix of the group's ranks, or why there is none.
        jaccl_built: whether MLX has the backend on every rank.
        all_pairs: whether ranks that are no neighbours must reach each other.
        self_test_failure: what the last self-test found wrong; empty where it passed or has not run.

    Returns:
        The choice; a refusal where jaccl was demanded and cannot be had.
    """
    if requested == "links":
        return GroupChoice("links", "asked for", (("jaccl", "not asked for"),))
    reasons: tuple[str, ...] = ()
    if not jaccl_built:
        reasons = ("MLX has no jaccl on this system",)
    elif isinstance(devices, MatrixRefusal):
        reasons = devices.reasons
    elif devices.ring and all_pairs:
        reasons = ("the cables form a ring, and ranks that are no neighbours must reach each other",)
    elif self_test_failure:
        reasons = (f"its self-test failed: {self_test_failure}",)
    if reasons and requested == "jaccl":
        return MatrixRefusal(reasons)
    if reasons or isinstance(devices, MatrixRefusal):
        return GroupChoice("links", "jaccl cannot be used here", (("jaccl", "; ".join(reasons)),))
    shape = "ring" if devices.ring else "mesh"
    wires = _fewest_wires(devices)
    return GroupChoice(
        "jaccl", f"RDMA over Thunderbolt, a {shape} with {wires} cable(s) for each pair", (), devices
    )


def _fewest_wires(matrix: DeviceMatrix) -> int:
    return min(len(cell) for row in matrix.devices for cell in row if cell)
