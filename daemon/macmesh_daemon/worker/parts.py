"""What a worker is made of, so that each part can be another one in tests. Imported before mlx is."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from macmesh.v1 import lane_pb2
    from macmesh_daemon.worker.loops import Schedule
    from macmesh_daemon.worker.runner import House, Stage

Progress = Callable[[int, int], None]
"""Is told bytes loaded and bytes to load."""


@dataclasses.dataclass(frozen=True)
class Parts:
    """The engine's parts; all are called on the inference thread, in this order."""

    load: "Callable[[lane_pb2.StartStage, Progress], Stage]"
    """Loads the stage of a plan."""
    house: "Callable[[lane_pb2.StartStage, Stage], House]"
    """Makes what keeps its caches."""
    schedule: "Callable[[lane_pb2.StartStage, Stage, bool], Schedule]"
    """At the head, the scheduler; last argument: whether steps are queued ahead on the device."""
