"""What the inference thread spends its time on."""

import dataclasses
import time

from macmesh.v1 import lane_pb2


@dataclasses.dataclass(slots=True)
class PhaseTime:
    """One phase, since the beginning."""

    seconds: float = 0.0
    count: int = 0


@dataclasses.dataclass(slots=True)
class StepTimes:
    """Cumulative times of one stage; `lane_pb2.StepTimes` says what each phase is.

    `lap` gives all the time since the lap before to one phase, so the phases add up to the wall clock.
    """

    describe: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    encode: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    wait: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    receive: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    send: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    sample: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    idle: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    operations: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    schedule: PhaseTime = dataclasses.field(default_factory=PhaseTime)
    ahead_used: int = 0
    """Decode steps described ahead, and used."""
    ahead_dropped: int = 0
    """Decode steps described ahead in vain."""
    _mark: float = dataclasses.field(default_factory=time.perf_counter, repr=False, compare=False)

    def lap(self, phase: PhaseTime) -> float:
        """What has passed since the last lap was this phase. Returns the time, of `time.perf_counter`."""
        now = time.perf_counter()
        phase.seconds += now - self._mark
        phase.count += 1
        self._mark = now
        return now

    def to_wire(self) -> lane_pb2.StepTimes:
        """As the worker tells it. May be called from any thread."""
        phases = {
            field.name: lane_pb2.PhaseTime(seconds=phase.seconds, count=phase.count)
            for field in dataclasses.fields(self)
            if isinstance(phase := getattr(self, field.name), PhaseTime)
        }
        return lane_pb2.StepTimes(**phases, ahead_used=self.ahead_used, ahead_dropped=self.ahead_dropped)
