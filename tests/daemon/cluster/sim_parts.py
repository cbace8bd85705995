"""What a simulated cluster is made of: facts, a planner, nodes, workers and faults."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import (
    Deployment,
    Epoch,
    ModelRef,
    NodeFacts,
    Stage,
    WantedModel,
    WorkerState,
)
from macmesh_daemon.cluster.state import PersistentState

if TYPE_CHECKING:
    from macmesh_daemon.cluster import effects as fx

LAYERS = 24


def wanted_model(name: str = "m", stage_count: int = 0) -> WantedModel:
    return WantedModel(ModelRef(name, f"/models/{name}", f"digest-{name}"), 1024, 1, "balanced", stage_count)


def facts_of(node_id: str) -> NodeFacts:
    return NodeFacts(
        hostname=node_id,
        host_id=node_id,
        ram_bytes=1 << 37,
        usable_bytes=1 << 36,
        macmesh_version="0.1.0",
        mlx_version="0.32.4",
        mlx_lm_version="0.32.2",
    )


def split(wanted: WantedModel, node_ids: list[str]) -> Deployment:
    """An even split of the layers over the nodes."""
    edges = [LAYERS * i // len(node_ids) for i in range(len(node_ids) + 1)]
    stages = tuple(Stage(i, n, edges[i], edges[i + 1]) for i, n in enumerate(node_ids))
    return Deployment(wanted.model, LAYERS, wanted.context_tokens, wanted.slots, 256, stages, "ring", "safe")


@dataclass
class Faults:
    """What the network and the nodes do wrong, as probabilities, and who cannot reach whom."""

    loss: float = 0.0
    duplicate: float = 0.0
    slow: float = 0.0
    crash_in_step: float = 0.0
    nack: float = 0.0
    worker_crash: float = 0.0
    cut: set[tuple[str, str]] = field(default_factory=set)


@dataclass
class Worker:
    """A worker process."""

    epoch: Epoch
    stage_index: int
    node_ids: tuple[str, ...]
    state: WorkerState = WorkerState.STARTING
    key: bytes = b""


class SimNode:
    """One node: its disk, and while it is up its machine and worker."""

    def __init__(self, node_id: str, facts: NodeFacts, *, founder: bool) -> None:
        self.node_id = node_id
        self.facts = facts
        self.founder = founder
        self.disk = PersistentState()
        self.boots = 0
        self.nonce = 0
        self.has_left = False
        self.machine: ClusterMachine | None = None
        self.worker: Worker | None = None
        self.next_tick: float | None = None
        self.open_requests: set[int] = set()
        self.outcomes: list[fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected] = []

    @property
    def up(self) -> ClusterMachine:
        assert self.machine is not None, f"{self.node_id} is down"
        return self.machine
