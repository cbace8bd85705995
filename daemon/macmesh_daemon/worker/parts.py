"""What a worker is made of, so that each part can be another one in tests. Imported before mlx is."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macmesh.v1 import lane_pb2
    from macmesh_daemon.worker.loops import Schedule
    from macmesh_daemon.worker.runner import House, Stage

Progress = Callable[[int, int], None]
"""Is told bytes loaded and bytes to load; the first call tells what was there before anything was read."""


def _rest() -> None:
    """Keeps nothing."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The engine's parts; all are called on the inference thread, in this order, and again for another epoch."""

    load: "Callable[[lane_pb2.StartStage, Progress], Stage]"
    """Loads the stage of a plan."""
    house: "Callable[[lane_pb2.StartStage, Stage], House]"
    """Makes what keeps its caches."""
    schedule: "Callable[[lane_pb2.StartStage, Stage, bool], Schedule]"
    """At the head, the scheduler; last argument: whether steps are queued ahead on the device."""
    rest: Callable[[], None] = _rest
    """The epoch has ended: gives everything up but the weights, which the next `load` takes over where it can."""
