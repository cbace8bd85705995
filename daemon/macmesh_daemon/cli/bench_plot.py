"""Draws what `daemonctl bench` measured into a PNG file, with matplotlib; see `macmesh_daemon.cli.plot`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from macmesh_daemon.cli.failures import CommandError
from macmesh_daemon.cli.output import printable
from macmesh_daemon.cli.plot import require_matplotlib, save

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh_daemon.bench.results import BenchReport, CaseResult, ClimbResult

_INCHES_WIDE: Final = 8.0
_INCHES_HIGH: Final = 3.0
_MARKERS: Final = "osd^v"


@dataclass(frozen=True, slots=True)
class Line:
    """One line: its name in the legend, and its points."""

    name: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram."""

    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    logarithmic: bool


def panels(report: BenchReport) -> tuple[Panel, ...]:
    """What is worth drawing. Pure."""
    load = [result for result in report.cases if result.case.suite == "load"]
    sweep = [result for result in report.cases if result.case.suite == "sweep"]
    return (
        *(_load(load) if load else ()),
        *(_sweep(sweep, report) if sweep else ()),
        *(_climb(report.climb) if report.climb and report.climb.rungs else ()),
    )


def draw_report(report: BenchReport, path: str) -> None:
    """Write the plot; the file is replaced.

    Raises:
        CommandError: There is nothing to draw, the file cannot be written, or matplotlib is missing.
    """
    require_matplotlib()
    from matplotlib.figure import Figure  # noqa: PLC0415  optional, and slow to load

    found = panels(report)
    if not found:
        raise CommandError("nothing to plot: nothing was measured")
    figure = Figure(figsize=(_INCHES_WIDE, _INCHES_HIGH * len(found)), layout="constrained")
    served = report.served
    figure.suptitle(printable(f"{served.model_id}, {served.stage_count} stages"))
    all_axes = figure.subplots(len(found), 1, squeeze=False)
    for panel, axes in zip(found, all_axes[:, 0], strict=True):
        for number, line in enumerate(panel.lines):
            axes.plot(
                line.xs, line.ys, marker=_MARKERS[number % len(_MARKERS)], markersize=4, label=line.name
            )
        axes.set_xlabel(panel.x_label)
        axes.set_ylabel(panel.y_label)
        axes.set_ylim(bottom=0)
        axes.grid(visible=True, alpha=0.3)
        if panel.logarithmic:
            axes.set_xscale("log", base=2)
        axes.legend()
    save(figure, path)


def _load(results: Sequence[CaseResult]) -> tuple[Panel, ...]:
    prefixes = tuple(dict.fromkeys(result.case.prefix for result in results))

    def line(prefix: str, name: str, ys: Sequence[float]) -> Line:
        xs = tuple(float(r.case.concurrency) for r in results if r.case.prefix == prefix)
        return Line(f"{name}, {prefix} prefix", xs, tuple(ys))

    speed, wait = [], []
    for prefix in prefixes:
        these = [result for result in results if result.case.prefix == prefix]
        speed.append(line(prefix, "all requests", [r.aggregate_tokens_per_second for r in these]))
        speed.append(line(prefix, "one request", [r.decode_tokens_per_second for r in these]))
        wait.append(line(prefix, "first token p50", [1e3 * r.first_token_seconds.p50 for r in these]))
        wait.append(line(prefix, "inter-token p99", [1e3 * r.inter_token_seconds.p99 for r in these]))
    label = "requests at once"
    return (
        Panel(label, "tokens/s", tuple(speed), logarithmic=False),
        Panel(label, "milliseconds", tuple(wait), logarithmic=False),
    )


def _sweep(results: Sequence[CaseResult], report: BenchReport) -> tuple[Panel, ...]:
    xs = tuple(float(result.case.prompt_tokens) for result in results)
    prefill = [Line("macmesh", xs, tuple(r.prefill_tokens_per_second for r in results))]
    decode = [Line("macmesh", xs, tuple(r.decode_tokens_per_second for r in results))]
    for baseline in report.baselines:
        swept = [case for case in baseline.cases if case.case.suite == "sweep"]
        theirs = tuple(float(case.case.prompt_tokens) for case in swept)
        if swept:
            prefill.append(Line(baseline.name, theirs, tuple(c.prefill_tokens_per_second for c in swept)))
            decode.append(Line(baseline.name, theirs, tuple(c.decode_tokens_per_second for c in swept)))
    label = "prompt, tokens"
    return (
        Panel(label, "prefill, tokens/s", tuple(prefill), logarithmic=True),
        Panel(label, "decode, tokens/s", tuple(decode), logarithmic=True),
    )


def _climb(climb: ClimbResult) -> tuple[Panel, ...]:
    xs = tuple(float(rung.length_tokens) for rung in climb.rungs)
    speed = Line("decode", xs, tuple(rung.run.decode_tokens_per_second for rung in climb.rungs))
    shares = []
    for index in range(len(climb.rungs[0].stages)):
        works = [rung.stages[index] for rung in climb.rungs]
        known = [(x, w) for x, w in zip(xs, works, strict=True) if not w.reason and w.ledger_bytes]
        shares.append(
            Line(
                f"stage {index}",
                tuple(x for x, _ in known),
                tuple(100 * w.peak_memory_bytes / w.ledger_bytes for _, w in known),
            )
        )
    label = "conversation, tokens"
    return (
        Panel(label, "tokens/s", (speed,), logarithmic=True),
        Panel(label, "peak, % of the ledger", tuple(shares), logarithmic=True),
    )
