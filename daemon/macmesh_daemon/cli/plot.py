"""Draws a `Curve` into a PNG file, with matplotlib, which only the extra ``macmesh[plot]`` brings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli import exit_codes
from macmesh_daemon.cli.failures import CommandError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from macmesh_daemon.cli.plot_data import Curve

_INK: Final = "#1f4e79"
_SHADE: Final = "#c8c8c8"
_INCHES: Final = (8.0, 6.0)
_DPI: Final = 150


def require_matplotlib() -> None:
    """Raises where matplotlib is missing, before any work is done.

    Raises:
        CommandError: It is; with the command that installs it.
    """
    try:
        import matplotlib  # noqa: F401, PLC0415, ICN001  optional, and slow to load; only whether it is there
    except ImportError as error:
        raise CommandError(
            "--plot needs matplotlib, which is not installed: python -m pip install 'macmesh[plot]'",
            reason="MISSING_DEPENDENCY",
        ) from error


def draw(curve: Curve, path: str, *, title: str) -> None:
    """Write the plot: predicted tokens/s above, the smallest headroom below, both against context.

    Args:
        curve: What to draw.
        path: The file; it is replaced.
        title: Model and cluster.

    Raises:
        CommandError: The file cannot be written, or matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415  optional, and slow to load; shadows the type's name

    figure = Figure(figsize=_INCHES, layout="constrained")
    figure.suptitle(title)
    speed, room = figure.subplots(2, 1, sharex=True)
    contexts = [point.context_tokens for point in curve.points]
    _line(speed, contexts, [point.tokens_per_second for point in curve.points], "predicted tokens/s")
    _line(room, contexts, [p.smallest_headroom_bytes / 1e9 for p in curve.points], "smallest headroom, GB")
    room.set_xlabel("context, tokens")
    if not curve.feasible_to_the_end:
        _shade(speed, curve, f"does not fit above {curve.largest_context_tokens:,}")
        _shade(room, curve, "")
    speed.set_xscale("log", base=2)
    ticks = [c for c in _powers(curve.last_context_tokens) if c >= contexts[0]] or [contexts[0]]
    room.set_xticks(ticks, [_thousands(c) for c in ticks])
    room.set_xlim(min(contexts[0], ticks[0]) / 1.1, curve.last_context_tokens * 1.1)
    save(figure, path)


def save(figure: Figure, path: str) -> None:
    """Write a figure as PNG; the file is replaced.

    Raises:
        CommandError: The file cannot be written.
    """
    target = Path(path).expanduser()
    try:
        figure.savefig(target, format="png", dpi=_DPI)
    except OSError as error:
        raise CommandError(
            f"cannot write {target}: {error}", reason="INVALID_ARGUMENT", exit_code=exit_codes.USAGE
        ) from error


def _line(axes: Axes, contexts: list[int], values: list[float], label: str) -> None:
    axes.plot(contexts, values, color=_INK, marker="o", markersize=4, linewidth=1.5)
    axes.set_ylabel(label)
    axes.set_ylim(bottom=0)
    axes.grid(visible=True, alpha=0.3)


def _shade(axes: Axes, curve: Curve, text: str) -> None:
    largest = curve.largest_context_tokens
    axes.axvspan(largest, curve.last_context_tokens * 1.1, color=_SHADE, alpha=0.6, linewidth=0)
    axes.annotate(
        text,
        xy=(largest, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-6, -6),
        textcoords="offset points",
        ha="right",
        va="top",
    )


def _powers(last: int) -> list[int]:
    return [1 << bits for bits in range(last.bit_length()) if 1 << bits <= last]


def _thousands(count: int) -> str:
    return f"{count // 1024}k" if count >= 1024 else str(count)  # noqa: PLR2004  1k tokens is 1,024 here
