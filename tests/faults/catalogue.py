"""All groups of scenarios, those that take longest first."""

from __future__ import annotations

from faults import disks, links, losses, moves, neighbours, processes, serving, splits, strangers, tensor

GROUPS = {
    group.name: group
    for group in (
        losses.GROUP,
        links.GROUP,
        serving.GROUP,
        tensor.GROUP,
        moves.GROUP,
        neighbours.GROUP,
        disks.GROUP,
        processes.GROUP,
        strangers.GROUP,
        splits.TWO,
        splits.FOUR,
    )
}
