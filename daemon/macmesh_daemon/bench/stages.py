"""What the stages did between two looks at them, and whether they kept to their ledgers. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from macmesh_daemon.bench.errors import RemoteAnswerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from macmesh import StagesStats
    from macmesh.v1.cluster_pb2 import MeasuredStage

#: Phases of a worker that are transport: waiting for the stage before, and handing on to the next.
TRANSPORT_PHASES: Final = ("receive", "send")


@dataclass(frozen=True, slots=True)
class StageWork:
    """One stage, and what it did during some requests.

    Attributes:
        index: Its place in the pipeline.
        node_id: Its node.
        first_layer: First layer, inclusive.
        end_layer: End of its layers, exclusive.
        ledger_bytes: What its ledger is charged with: the sum of its lines.
        active_memory_bytes: What MLX held at the end.
        peak_memory_bytes: The most that MLX held since the worker started.
        steps: Steps done meanwhile.
        phase_seconds: Time of each phase of its inference thread meanwhile; empty where the worker told no times.
        reason: Why the figures are missing or old; empty where they are fresh.
    """

    index: int
    node_id: str
    first_layer: int
    end_layer: int
    ledger_bytes: int
    active_memory_bytes: int = 0
    peak_memory_bytes: int = 0
    steps: int = 0
    phase_seconds: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""

    @property
    def within_ledger(self) -> bool | None:
        """Whether the peak is at most what the ledger says; None where it is not known."""
        return None if self.reason else self.peak_memory_bytes <= self.ledger_bytes

    @property
    def phase_milliseconds_per_step(self) -> dict[str, float]:
        """Time of each phase over the steps; empty where no step was done or no times were told."""
        if not self.steps:
            return {}
        return {name: 1e3 * seconds / self.steps for name, seconds in self.phase_seconds.items()}

    @property
    def transport_milliseconds_per_step(self) -> float | None:
        """Receiving and sending together; None where it is not known."""
        phases = self.phase_milliseconds_per_step
        return sum(phases.get(name, 0.0) for name in TRANSPORT_PHASES) if phases else None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        transport = self.transport_milliseconds_per_step
        return {
            "index": self.index,
            "node_id": self.node_id,
            "first_layer": self.first_layer,
            "end_layer": self.end_layer,
            "ledger_bytes": self.ledger_bytes,
            "active_memory_bytes": self.active_memory_bytes,
            "peak_memory_bytes": self.peak_memory_bytes,
            "within_ledger": self.within_ledger,
            "steps": self.steps,
            "phase_ms_per_step": {n: round(v, 4) for n, v in self.phase_milliseconds_per_step.items()},
            "transport_ms_per_step": None if transport is None else round(transport, 4),
            "reason": self.reason,
        }


def stage_work(before: StagesStats, after: StagesStats) -> tuple[StageWork, ...]:
    """What every stage did from one look to the next.

    Raises:
        RemoteAnswerError: the plan is another one, or a worker started anew meanwhile.
    """
    if before.epoch != after.epoch:
        raise RemoteAnswerError(
            "the plan changed while it was measured; see `daemonctl events`, then try again"
        )
    return tuple(_work(old, new) for old, new in zip(before.stages, after.stages, strict=True))


def _work(before: MeasuredStage, after: MeasuredStage) -> StageWork:
    stage, then, now = after.stage, before.stats, after.stats
    reason = after.reason or before.reason
    if not reason and now.steps < then.steps:
        raise RemoteAnswerError(f"the worker of stage {stage.index} started anew while it was measured")
    began = {phase.name: phase.seconds for phase in then.phases}
    return StageWork(
        index=stage.index,
        node_id=stage.node_id,
        first_layer=stage.first_layer,
        end_layer=stage.end_layer,
        ledger_bytes=sum(entry.size_bytes for entry in stage.ledger.entries),
        active_memory_bytes=now.active_memory_bytes,
        peak_memory_bytes=now.peak_memory_bytes,
        steps=0 if reason else now.steps - then.steps,
        phase_seconds={}
        if reason
        else {phase.name: phase.seconds - began.get(phase.name, 0.0) for phase in now.phases},
        reason=reason,
    )


def added(works: Sequence[tuple[StageWork, ...]]) -> tuple[StageWork, ...]:
    """The work of several rounds as one: steps and times are summed, memory is that of the last round.

    A stage whose figures are missing in one round has none in the sum, but the reason.
    """
    return tuple(_added(rounds) for rounds in zip(*works, strict=True))


def _added(rounds: Sequence[StageWork]) -> StageWork:
    last = rounds[-1]
    reason = next((work.reason for work in rounds if work.reason), "")
    names = {name: None for work in rounds for name in work.phase_seconds}
    return StageWork(
        index=last.index,
        node_id=last.node_id,
        first_layer=last.first_layer,
        end_layer=last.end_layer,
        ledger_bytes=last.ledger_bytes,
        active_memory_bytes=last.active_memory_bytes,
        peak_memory_bytes=max(work.peak_memory_bytes for work in rounds),
        steps=0 if reason else sum(work.steps for work in rounds),
        phase_seconds={}
        if reason
        else {name: sum(work.phase_seconds.get(name, 0.0) for work in rounds) for name in names},
        reason=reason,
    )


def ledger_complaint(works: Sequence[StageWork]) -> str:
    """Which stages are not known to keep to their ledgers, in words; empty where all do."""
    lines = []
    for work in works:
        name = f"stage {work.index} (node {work.node_id[:8]}, layers {work.first_layer}-{work.end_layer - 1})"
        if work.reason:
            lines.append(f"{name} cannot be checked: {work.reason}")
        elif not work.within_ledger:
            lines.append(
                f"{name} held {work.peak_memory_bytes:,} bytes at its peak, "
                f"{work.peak_memory_bytes - work.ledger_bytes:,} more than the {work.ledger_bytes:,} of its ledger"
            )
    return "; ".join(lines)
