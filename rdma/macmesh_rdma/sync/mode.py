"""How a worker's GPU stream and its transport's CPU streams wait for each other: ``safe``, ``fast`` or ``auto``. Pure.

MLX's default fence costs some 180 µs for each crossing on Metal; ``MLX_METAL_FAST_SYNCH=1`` costs a few, but may
leave the GPU waiting for ever. It concerns one process only, so each node decides for itself. It must be in the
environment before mlx is imported.
"""

import dataclasses
from typing import Literal

SyncMode = Literal["safe", "fast", "auto"]
Outcome = Literal["passed", "hung", "wrong", "failed"]
VARIABLE = "MLX_METAL_FAST_SYNCH"
MIN_MACOS_MAJOR = 15
"""MLX ignores the setting on older systems."""
MIN_GAIN = 1.25
"""``auto`` takes the risk of ``fast`` only where a chained hop takes at most 1 / MIN_GAIN of the time."""


@dataclasses.dataclass(frozen=True)
class SyncPlatform:
    """What decides whether ``fast`` exists on a node.

    Attributes:
        system: as `sys.platform`.
        macos_major: such as 26; 0 elsewhere.
        chip: such as "Apple M3 Ultra".
        macos_build: such as "25C56".
        mlx_version: such as "0.32.4".
    """

    system: str
    macos_major: int = 0
    chip: str = ""
    macos_build: str = ""
    mlx_version: str = ""

    @property
    def key(self) -> str:
        """Names what a hang or a measurement was seen on; changes with the system, the chip and mlx."""
        return f"{self.macos_build}/{self.chip}/{self.mlx_version}"

    @property
    def has_fast(self) -> bool:
        """Whether the setting does anything here."""
        return self.system == "darwin" and self.macos_major >= MIN_MACOS_MAJOR


@dataclasses.dataclass(frozen=True)
class HopResult:
    """One run of the self-test.

    Attributes:
        outcome: "passed", "hung" (ended at its deadline), "wrong" (a wrong value arrived) or "failed".
        chained_us: microseconds per hop where nothing waits on the host in between; 0 unless passed.
        evaluated_us: likewise, with an evaluation for each hop.
        detail: what went wrong.
    """

    outcome: Outcome
    chained_us: float = 0.0
    evaluated_us: float = 0.0
    detail: str = ""


@dataclasses.dataclass(frozen=True)
class SyncComparison:
    """The self-test in both settings."""

    safe: HopResult
    fast: HopResult


@dataclasses.dataclass(frozen=True)
class SyncDecision:
    """What is in force.

    Attributes:
        mode: "safe" or "fast".
        reason: why, for status.
        attention: whether a person should see the reason: what was asked for was not given.
    """

    mode: Literal["safe", "fast"]
    reason: str
    attention: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """To be set before mlx is imported."""
        return {VARIABLE: "1" if self.mode == "fast" else "0"}


def needs_self_test(requested: SyncMode, platform: SyncPlatform, quarantine: str) -> bool:
    """Whether `decide` has a use for the self-test."""
    return requested == "auto" and platform.has_fast and not quarantine


def decide(
    requested: SyncMode,
    platform: SyncPlatform,
    *,
    quarantine: str = "",
    comparison: SyncComparison | None = None,
) -> SyncDecision:
    """Decides for one worker.

    Args:
        requested: as configured. "fast" is taken without a self-test, but not out of quarantine.
        platform: of this node.
        quarantine: why ``fast`` is in quarantine here; empty where it is not.
        comparison: what the self-test found; None where it has not run.
    """
    if requested == "safe":
        return SyncDecision("safe", "asked for")
    if not platform.has_fast:
        return SyncDecision("safe", f"fast needs Metal and macOS {MIN_MACOS_MAJOR} or later")
    if quarantine:
        return SyncDecision("safe", f"fast is in quarantine: {quarantine}", attention=True)
    if requested == "fast":
        return SyncDecision("fast", "asked for")
    return _decide_by(comparison)


def _decide_by(comparison: SyncComparison | None) -> SyncDecision:
    if comparison is None:
        return SyncDecision("safe", "the self-test of fast has not run")
    safe, fast = comparison.safe, comparison.fast
    if fast.outcome != "passed":
        return SyncDecision("safe", f"fast {fast.outcome} in its self-test: {fast.detail}", attention=True)
    if safe.outcome != "passed":
        return SyncDecision("safe", f"safe {safe.outcome} in its self-test: {safe.detail}", attention=True)
    times = f"{fast.chained_us:.0f} µs per hop against {safe.chained_us:.0f} µs"
    if fast.chained_us * MIN_GAIN > safe.chained_us:
        return SyncDecision("safe", f"fast gains too little: {times}")
    return SyncDecision("fast", f"its self-test passed: {times}")
