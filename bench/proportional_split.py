"""The yardstick of the benchmark: layers in proportion to free memory, by largest remainder."""

from collections.abc import Sequence


def proportional_split(free_bytes: Sequence[int], layer_count: int) -> list[int]:
    """Layers in proportion to free memory, by largest remainder, with at least one for each node."""
    total = sum(free_bytes)
    counts = [layer_count * free // total for free in free_bytes]
    remainders = [layer_count * free % total for free in free_bytes]
    by_remainder = sorted(range(len(counts)), key=lambda node: -remainders[node])
    for node in by_remainder[: layer_count - sum(counts)]:
        counts[node] += 1
    for node, count in enumerate(counts):
        if count == 0:
            counts[max(range(len(counts)), key=counts.__getitem__)] -= 1
            counts[node] = 1
    return counts
