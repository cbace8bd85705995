"""Numbers for people."""

_STEPS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
_GIB = 1 << 30


def size(size_bytes: int) -> str:
    """Bytes in decimal units with three digits: ``61.4 GB``."""
    sign = "-" if size_bytes < 0 else ""
    value = abs(size_bytes)
    for step, unit in _STEPS:
        if value >= step * 0.9995 or step == 10**3:
            return f"{sign}{_three_digits(value / step)} {unit}"
    raise AssertionError("the smallest unit takes everything")


def ram(size_bytes: int) -> str:
    """Physical memory, as it is sold: whole GiB where it is that, else as `size`."""
    if size_bytes and size_bytes % _GIB == 0:
        return f"{size_bytes // _GIB} GiB"
    return size(size_bytes)


def count(value: int) -> str:
    """A count with its thousands parted."""
    return f"{value:,}"


def _three_digits(value: float) -> str:
    if value < 9.995:  # noqa: PLR2004  digits
        return f"{value:.2f}"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"  # noqa: PLR2004  digits


def transport(kind: str, reason: str) -> str:
    """What carries the arrays of a plan, and why."""
    return f"{'the best link for each pair' if kind == 'auto' else kind} ({reason})"
