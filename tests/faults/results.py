"""What a scenario measured, and how that compares with its target."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


class LocalOutcomeWrongError(AssertionError):
    """The cluster did something else than the design says."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value.

    Attributes:
        what: From where to where.
        value: The figure.
        unit: Its unit.
        target: The most that it should be; None where nothing is asked of it. A figure above it is told as slow and
            fails nothing: how fast a machine of two cores with four daemons is today is not what is tested.
        limit: Above this, the scenario has failed; for counts, which no machine's speed changes.
    """

    what: str
    value: float
    unit: str = "s"
    target: float | None = None
    limit: float | None = None

    @property
    def verdict(self) -> str:
        """ "ok", "slow" (above its target) or "FAILED"; "" where nothing is asked."""
        if self.target is None:
            return ""
        if self.limit is not None and self.value > self.limit:
            return "FAILED"
        return "slow" if self.value > self.target else "ok"


@dataclass(slots=True)
class Result:
    """One scenario.

    Attributes:
        scenario: Its name.
        group: Scenarios that share a cluster.
        outcome: "passed", "failed" or "skipped".
        reason: Why it failed or was skipped.
        figures: What was measured.
        holds: What was seen to hold besides.
        checker: What the offline checker said of all nodes' event logs.
        wall_seconds: For the whole scenario.
    """

    scenario: str
    group: str
    outcome: str = "passed"
    reason: str = ""
    figures: list[Figure] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    checker: str = ""
    wall_seconds: float = 0.0

    def settle(self) -> None:
        """Fail where a figure does."""
        bad = [f"{f.what}: {f.value:.2f} {f.unit}" for f in self.figures if f.verdict == "FAILED"]
        if bad and self.outcome == "passed":
            self.outcome, self.reason = "failed", "; ".join(bad)

    def to_json(self) -> dict[str, Any]:
        """For a program."""
        value = asdict(self)
        for figure, given in zip(self.figures, value["figures"], strict=True):
            given["verdict"] = figure.verdict
        return value

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Result:
        """Back from `to_json`."""
        figures = [
            Figure(**{k: v for k, v in figure.items() if k != "verdict"}) for figure in value["figures"]
        ]
        return cls(**{**value, "figures": figures})


def table(results: list[Result]) -> str:
    """Scenario, what was measured, target, verdict: for people."""
    rows = [("scenario", "measured", "value", "target", "verdict")]
    rows += [
        (result.scenario, f.what, f"{_number(f.value)} {f.unit}".rstrip(), _target(f), f.verdict)
        for result in results
        for f in result.figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [_line(("", *rows[0][1:]), widths)]
    for result in results:
        lines.append(
            f"{result.scenario}: {result.outcome}" + (f" ({result.checker})" if result.checker else "")
        )
        lines += [_line(("", *row[1:]), widths) for row in rows[1:] if row[0] == result.scenario]
        lines += [_line(("", held, "", "", "ok"), widths) for held in result.holds]
        if result.outcome != "passed":
            lines.append(_line(("", " ".join(result.reason.split())[:200], "", "", ""), widths))
    return "\n".join(lines)


def _number(value: float) -> str:
    if value == int(value):
        return str(int(value))
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def _target(figure: Figure) -> str:
    return "" if figure.target is None else f"<= {figure.target:g} {figure.unit}".rstrip()


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    widths = [2, max(widths[1], 60), *widths[2:]]
    return "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
