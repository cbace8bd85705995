"""How many rows a cache of mlx-lm has allocated after a history of steps, class by class.

Every function takes the tokens of each step, in order, and repeats the arithmetic of one class of mlx-lm's
``models/cache.py`` (or ``models/deepseek_v41.py``).
"""

from collections.abc import Sequence


def round_up(count: int, step: int) -> int:
    """The smallest multiple of ``step`` that is not below ``count``."""
    return -(-count // step) * step


def growing_rows(updates: Sequence[int], step: int, reserve: int) -> int:
    """Rows of a ``KVCache`` or ``QuantizedKVCache``, the first ``reserve`` of them allocated at once."""
    rows, offset = round_up(reserve, step), 0
    for count in updates:
        if offset + count > rows:
            kept = offset if offset % step else rows
            rows = kept + round_up(count, step)
        offset += count
    return rows


def ring_rows(updates: Sequence[int], step: int, window: int) -> int:
    """Rows of a ``RotatingKVCache``."""
    rows, offset, index = 0, 0, 0
    for count in updates:
        if count > 1:
            ordered = rows if index == rows or index < offset else index
            rows = min(ordered, window - 1) + count
            index = rows
        else:
            if offset >= rows and rows < window:
                rows += min(step, window - offset)
                index = offset
            if rows > window:
                rows, index = window, window
            index = (0 if index == window else index) + 1
        offset += count
    return rows


def chunked_rows(updates: Sequence[int], step: int, window: int) -> int:
    """Rows of a ``ChunkedKVCache``."""
    rows, valid = 0, 0
    for count in updates:
        if valid > window:
            rows, valid = window, window
        if valid + count > rows:
            kept = valid if valid % step else rows
            rows = kept + round_up(count, step)
        valid += count
    return rows
