"""What a drill found out."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from macmesh_daemon.drill.tokens import TokenVerdict

Kind = Literal["kill-worker", "drain", "restart-coordinator"]
KINDS: tuple[Kind, ...] = ("kill-worker", "drain", "restart-coordinator")


@dataclass(frozen=True, slots=True)
class DrillReport:
    """The outcome. All times count from the moment at which the fault was asked for; None: it never came.

    Attributes:
        kind: What was rehearsed.
        node_id: Where.
        done: What the node says that it did.
        detection_seconds: Until the cluster told that something was amiss, or a drain begun.
        plan_seconds: Until a new plan was committed.
        ready_seconds: Until it was ready.
        first_token_seconds: Until the first token under the new plan, of the stream or, where that was lost, of
            another one.
        pause_seconds: The longest wait between two tokens of the stream from then on; until its end where it was lost.
        loaded_bytes: Per node of the new plan, what its worker loaded for it.
        tokens: What became of the stream's tokens.
        stream_error: Why the stream ended early; "" where it did not.
        new_epoch: Of the new plan; "" where none came.
    """

    kind: Kind
    node_id: str
    done: str
    detection_seconds: float | None
    plan_seconds: float | None
    ready_seconds: float | None
    first_token_seconds: float | None
    pause_seconds: float | None
    tokens: TokenVerdict
    stream_error: str = ""
    new_epoch: str = ""
    loaded_bytes: dict[str, int] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the stream came whole and the cluster serves again."""
        return self.tokens.is_whole and not self.stream_error and self.ready_seconds is not None

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {**asdict(self), "passed": self.passed}


def render(report: DrillReport, name: str) -> str:
    """The report for people.

    Args:
        report: It.
        name: Of the node.
    """
    tokens = report.tokens
    came = f"{tokens.received} of {tokens.expected} came"
    wrong = f"{tokens.lost} lost, {tokens.doubled} doubled, {tokens.differing} differ"
    rows = [
        ("drill", f"{report.kind} on {name}: {report.done}"),
        ("noticed after", _seconds(report.detection_seconds)),
        ("new plan after", _seconds(report.plan_seconds)),
        ("ready after", _seconds(report.ready_seconds)),
        ("first token after", _seconds(report.first_token_seconds)),
        ("longest pause", _seconds(report.pause_seconds)),
        ("loaded", _loaded(report.loaded_bytes)),
        ("tokens", f"{came}; {wrong}"),
    ]
    if report.stream_error:
        rows.append(("stream", f"LOST: {report.stream_error}"))
    rows.append(("verdict", "passed" if report.passed else "FAILED"))
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:{width}}  {text}" for label, text in rows)


def _seconds(value: float | None) -> str:
    return f"{value:.2f} s" if value is not None else "never"


def _loaded(loaded_bytes: dict[str, int]) -> str:
    parts = [f"{node_id[:8]} {size / 1e6:.1f} MB" for node_id, size in loaded_bytes.items()]
    return ", ".join(parts) or "-"
