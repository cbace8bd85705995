"""How the progress of a load is shown. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from macmesh.v1 import peer_pb2
from macmesh_daemon.cli import units
from macmesh_daemon.cli.bars import Kind, Segment, render_bar
from macmesh_daemon.cli.table import CYAN, DIM

if TYPE_CHECKING:
    from macmesh import LoadProgress
    from macmesh.v1 import types_pb2

LOADED: Final = Kind("loaded", "█", CYAN)
TO_LOAD: Final = Kind("to load", "·", DIM)
MOST_CELLS: Final = 40
LEAST_CELLS: Final = 5

_STATES: Final = {
    peer_pb2.WORKER_STATE_UNSPECIFIED: "is asked to start",
    peer_pb2.WORKER_STATE_STARTING: "starts",
    peer_pb2.WORKER_STATE_LOADING: "loads",
    peer_pb2.WORKER_STATE_LOADED: "loaded",
    peer_pb2.WORKER_STATE_READY: "ready",
    peer_pb2.WORKER_STATE_FAILED: "failed",
    peer_pb2.WORKER_STATE_STOPPED: "stopped",
}
_SHARES: Final = (25, 50, 75, 100)


@dataclass(slots=True)
class PlainLines:
    """Lines for a log: one for each phase, and one for each quarter of the weights."""

    _phase: str = ""
    _share: int = 0

    def of(self, step: LoadProgress) -> list[str]:
        """The lines that a step adds."""
        lines = []
        if step.phase != self._phase:
            self._phase = step.phase
            self._share = 0
            lines.append(
                f"{step.phase}: {stages_line(step)}" if step.phase in {"committed", "ready"} else step.phase
            )
        if step.phase == "loading" and step.total_bytes:
            share = 100 * step.loaded_bytes // step.total_bytes
            reached = max((one for one in _SHARES if one <= share), default=0)
            if reached > self._share:
                self._share = reached
                lines.append(f"loading {share}% ({_of_total(step.loaded_bytes, step.total_bytes)})")
        return lines


@dataclass(slots=True)
class LiveBlock:
    """Lines of a terminal that are rewritten in place: a bar for each stage.

    Attributes:
        color: With escape sequences for colours.
    """

    color: bool = False
    _plain: PlainLines = field(default_factory=PlainLines)
    _drawn_lines: int = 0

    def of(self, step: LoadProgress, columns: int) -> str:
        """What to write to the terminal for a step.

        Args:
            step: See there.
            columns: Of the terminal as it is now.
        """
        lines = self._plain.of(step)
        if step.deployment is None or step.phase not in {"loading", "connecting", "ready"}:
            self._drawn_lines = 0
            return "".join(f"{line}\n" for line in lines)
        # Back to the first bar; what is below is drawn anew.
        back = f"\x1b[{self._drawn_lines}A\r\x1b[J" if self._drawn_lines else ""
        bars = stage_bars(step, columns, color=self.color)
        # When it is ready, what its start took is left below the bars.
        last = [line for line in lines if line.startswith("ready")]
        self._drawn_lines = 0 if last else len(bars)
        return back + "".join(f"{line}\n" for line in [*bars, *last])


def stage_bars(step: LoadProgress, columns: int, *, color: bool = False) -> list[str]:
    """A line for each stage of a step's plan: bytes loaded of all that it needs, and what its worker does.

    No line is longer than the terminal is wide, or it would be two where one is taken back.

    Args:
        step: With its plan.
        columns: Of the terminal.
        color: With escape sequences.
    """
    stages = step.deployment.stages if step.deployment is not None else ()
    reports = {report.stage_index: report for report in step.workers}
    lines = []
    for stage in stages:
        report = reports.get(stage.index, peer_pb2.WorkerReport())
        loaded, total = report.loaded_bytes, report.total_bytes
        left = f"stage {stage.index} {stage.node_id[:8]} "
        share = f"{100 * loaded // total:3d}%" if total else "   -"
        does = fetching(report) or _STATES[report.state]
        right = f" {share} {_of_total(loaded, total) if total else ''}".rstrip() + f" {does}"
        cells = min(MOST_CELLS, columns - 1 - len(left) - len(right))
        if cells < LEAST_CELLS:
            lines.append((left.rstrip() + right)[: max(1, columns - 1)])
            continue
        segments = (Segment(LOADED, loaded), Segment(TO_LOAD, max(0, total - loaded)))
        bar, drawn = render_bar(segments, scale_bytes=max(total, 1), cells=cells, color=color)
        lines.append(left + bar + TO_LOAD.sign * (cells - drawn) + right)
    return lines


def fetching(report: peer_pb2.WorkerReport) -> str:
    """Where the weights of a stage come from, while they come; else empty."""
    if not report.HasField("fetch"):
        return ""
    fetch = report.fetch
    nodes = len(fetch.source_node_ids)
    parts = [
        (fetch.disk_bytes, "the disk"),
        (fetch.peer_bytes, "a node" if nodes == 1 else f"{nodes} nodes"),
        (fetch.hub_bytes, "the hub"),
    ]
    told = ", ".join(f"{units.size(size)} of {place}" for size, place in parts if size)
    return f"fetches ({told})" if told else "fetches"


def stages_line(step: LoadProgress) -> str:
    """The plan of a step in a line; once its workers serve, with what their start took."""
    if step.deployment is None:
        return f"epoch {step.epoch}"
    reports = {report.stage_index: report for report in step.workers}
    parts = [
        _stage(stage, reports.get(stage.index), ready=step.phase == "ready")
        for stage in step.deployment.stages
    ]
    return f"epoch {step.epoch}, {', '.join(parts)}"


def _stage(stage: types_pb2.Stage, report: peer_pb2.WorkerReport | None, *, ready: bool) -> str:
    if ready:
        phases = () if report is None else report.start_phases
        took = " + ".join(f"{phase.name.replace('_', '-')} {phase.seconds:.1f} s" for phase in phases)
        return f"{stage.node_id[:8]} {took}".rstrip()
    return f"{stage.node_id[:8]} layers {stage.first_layer}-{stage.end_layer - 1}"


def _of_total(loaded: int, total: int) -> str:
    return f"{units.size(loaded)} of {units.size(total)}"
