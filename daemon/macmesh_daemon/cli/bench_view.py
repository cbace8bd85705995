"""Tables of what `daemonctl bench` measured. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from macmesh_daemon.bench.statistics import Spread
from macmesh_daemon.cli import units
from macmesh_daemon.cli.output import printable
from macmesh_daemon.cli.table import BOLD, RED, Column, render_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh_daemon.bench.arrival import ArrivalResult
    from macmesh_daemon.bench.results import Baseline, BenchReport, CaseResult, ClimbResult, Rung
    from macmesh_daemon.bench.stages import StageWork

_UNKNOWN = "-"
#: Phases with a column of their own; receive and send are one, and what is left is "other".
_OWN_COLUMNS = ("describe", "encode", "wait", "sample", "idle")


def render_report(report: BenchReport, width: int | None, *, color: bool = False) -> str:
    """Everything, table by table."""
    served = report.served
    head = (
        f"{printable(served.model_id)}  epoch {served.epoch}  {served.stage_count} stages  "
        f"context {units.count(served.context_tokens)}  {served.slots} slots"
    )
    parts = [head]
    if report.cases:
        parts.append(_cases(report.cases, width, color=color))
        parts.append(_stages(report.cases, width, color=color))
    if report.arrival:
        parts.append(_arrival(report.arrival, width, color=color))
    if report.climb:
        parts.append(_climb(report.climb, width, color=color))
    parts += [_baseline(report, baseline, width, color=color) for baseline in report.baselines]
    return "\n\n".join(parts)


def rung_line(rung: Rung) -> str:
    """One rung, as it is told while the climb goes on."""
    return (
        f"{units.count(rung.length_tokens)} tokens: first token after {_seconds(rung.run.first_token_seconds)}, "
        f"then {rung.run.decode_tokens_per_second:.1f} tokens/s; {_headroom(rung.stages)}"
    )


def _cases(cases: Sequence[CaseResult], width: int | None, *, color: bool) -> str:
    columns = [
        Column("PROMPT", right=True),
        Column("NEW", right=True),
        Column("PREFIX"),
        Column("AT ONCE", right=True),
        Column("TTFT p50", right=True),
        Column("p95", right=True),
        Column("ITL p50", right=True),
        Column("p95", right=True),
        Column("p99", right=True),
        Column("PREFILL tok/s", right=True),
        Column("DECODE tok/s", right=True),
        Column("ALL tok/s", right=True),
        Column("HITS", right=True),
    ]
    rows = []
    for result in cases:
        case, first, inter = result.case, result.first_token_seconds, result.inter_token_seconds
        rows.append(
            [
                units.count(case.prompt_tokens),
                units.count(case.new_tokens),
                case.prefix,
                str(case.concurrency),
                _seconds(first.p50),
                _seconds(first.p95),
                *(_seconds(v) if inter.count else _UNKNOWN for v in (inter.p50, inter.p95, inter.p99)),
                _speed(result.prefill_tokens_per_second),
                _speed(result.decode_tokens_per_second),
                _speed(result.aggregate_tokens_per_second),
                f"{result.schedule.prefix_hits}/{result.schedule.prompts}" if result.schedule else _UNKNOWN,
            ]
        )
    return render_table(columns, rows, width=width, header_color=BOLD if color else "")


def _stages(cases: Sequence[CaseResult], width: int | None, *, color: bool) -> str:
    """Where each stage's time went, milliseconds for each step, and its memory."""
    columns = [
        Column("PROMPT", right=True),
        Column("PREFIX"),
        Column("AT ONCE", right=True),
        Column("STAGE", right=True),
        Column("LAYERS"),
        Column("STEPS", right=True),
        *(Column(f"{name} ms", right=True) for name in ("describe", "encode", "wait", "sample")),
        Column("transport ms", right=True),
        Column("other ms", right=True),
        Column("idle ms", right=True),
        Column("PEAK", right=True),
        Column("LEDGER", right=True),
        Column("", least=8),
    ]
    rows: list[list[str]] = []
    colors: dict[tuple[int, int], str] = {}
    for result in cases:
        for work in result.stages:
            if color and work.within_ledger is False:
                colors[len(rows), 13] = RED
            rows.append(_stage_row(result, work))
    return render_table(columns, rows, width=width, colors=colors, header_color=BOLD if color else "")


def _stage_row(result: CaseResult, work: StageWork) -> list[str]:
    case = result.case
    times = work.phase_milliseconds_per_step
    transport = work.transport_milliseconds_per_step
    other = sum(v for name, v in times.items() if name not in _OWN_COLUMNS) - (transport or 0.0)
    known = bool(times)
    return [
        units.count(case.prompt_tokens),
        case.prefix,
        str(case.concurrency),
        str(work.index),
        f"{work.first_layer}-{work.end_layer - 1}",
        units.count(work.steps) if not work.reason else _UNKNOWN,
        *(f"{times[n]:.3f}" if n in times else _UNKNOWN for n in ("describe", "encode", "wait", "sample")),
        _UNKNOWN if transport is None else f"{transport:.3f}",
        f"{max(other, 0.0):.3f}" if known else _UNKNOWN,
        f"{times['idle']:.3f}" if "idle" in times else _UNKNOWN,
        *_memory(work),
        printable(work.reason) or ("within" if work.within_ledger else "above its ledger"),
    ]


def _memory(work: StageWork) -> list[str]:
    if work.reason and not work.peak_memory_bytes:
        return [_UNKNOWN, units.size(work.ledger_bytes)]
    return [units.size(work.peak_memory_bytes), units.size(work.ledger_bytes)]


def _arrival(arrival: ArrivalResult, width: int | None, *, color: bool) -> str:
    """What the reader of a stream notices of a long prompt."""
    columns = [Column("STREAM")] + [
        Column(name, right=True) for name in ("RESPONSES", "p50", "p95", "p99", "LARGEST")
    ]
    rows = []
    for name, seconds in (
        ("before", arrival.steady_seconds),
        (f"while {units.count(arrival.prompt_tokens)} tokens arrive", arrival.during_seconds),
    ):
        spread = Spread.of(seconds)
        times = (spread.p50, spread.p95, spread.p99, spread.largest)
        rows.append(
            [name, units.count(spread.count), *(_seconds(v) if spread.count else _UNKNOWN for v in times)]
        )
    table = render_table(columns, rows, width=width, header_color=BOLD if color else "")
    return f"{table}\n{_headroom(arrival.stages)}"


def _climb(climb: ClimbResult, width: int | None, *, color: bool) -> str:
    columns = [
        Column("CONVERSATION", right=True),
        Column("TTFT", right=True),
        Column("DECODE tok/s", right=True),
        Column("LEAST ROOM IN A LEDGER", least=8),
    ]
    rows = [
        [
            units.count(rung.length_tokens),
            _seconds(rung.run.first_token_seconds),
            _speed(rung.run.decode_tokens_per_second),
            _headroom(rung.stages),
        ]
        for rung in climb.rungs
    ]
    table = render_table(columns, rows, width=width, header_color=BOLD if color else "")
    verdict = (
        f"stopped {climb.complaint}"
        if climb.complaint
        else f"reached the whole context of {units.count(climb.context_tokens)} tokens within every ledger"
    )
    return f"{table}\n{printable(verdict)}"


def _headroom(stages: Sequence[StageWork]) -> str:
    unknown = next((work for work in stages if work.reason), None)
    if unknown is not None:
        return f"stage {unknown.index}: {printable(unknown.reason)}"
    least = min(stages, key=lambda work: work.ledger_bytes - work.peak_memory_bytes)
    room = least.ledger_bytes - least.peak_memory_bytes
    return f"stage {least.index}: peak {units.size(least.peak_memory_bytes)}, {units.size(room)} below its ledger"


def _baseline(report: BenchReport, baseline: Baseline, width: int | None, *, color: bool) -> str:
    """Side by side: what macmesh serves, what mlx-lm does, and the one over the other."""
    if baseline.refusal:
        return f"{baseline.name}: not run: {printable(baseline.refusal)}"
    columns = [
        Column("PROMPT", right=True),
        Column("NEW", right=True),
        Column("PREFILL tok/s", right=True),
        Column(baseline.name, right=True),
        Column("RATIO", right=True),
        Column("DECODE tok/s", right=True),
        Column(baseline.name, right=True),
        Column("RATIO", right=True),
        Column("SAME TOKENS"),
    ]
    ours = {result.case: result for result in report.cases}
    rows = [
        [
            units.count(theirs.case.prompt_tokens),
            units.count(theirs.case.new_tokens),
            *_pair(ours[theirs.case].prefill_tokens_per_second, theirs.prefill_tokens_per_second),
            *_pair(ours[theirs.case].decode_tokens_per_second, theirs.decode_tokens_per_second),
            "yes" if theirs.identical else "no",
        ]
        for theirs in baseline.cases
    ]
    return render_table(columns, rows, width=width, header_color=BOLD if color else "")


def _pair(ours: float, theirs: float) -> tuple[str, str, str]:
    return _speed(ours), _speed(theirs), f"{100 * ours / theirs:.1f}%" if theirs else _UNKNOWN


def _seconds(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.2f} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"  # noqa: PLR2004  digits
    return f"{seconds:.2f} s"


def _speed(tokens_per_second: float) -> str:
    if not tokens_per_second:
        return _UNKNOWN
    return f"{tokens_per_second:,.1f}" if tokens_per_second < 1000 else f"{tokens_per_second:,.0f}"  # noqa: PLR2004  digits
