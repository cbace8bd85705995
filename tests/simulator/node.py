"""A simulated node and its worker."""

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from macmesh_daemon.cluster.machine import ClusterMachine
from macmesh_daemon.cluster.messages import Epoch, NodeFacts, WorkerState
from macmesh_daemon.cluster.state import PersistentState

from .clock import NodeClock
from .drive import Drive

if TYPE_CHECKING:
    from macmesh_daemon.cluster import effects as fx
    from macmesh_daemon.cluster import events as ev

    from .serving.desk import Desk


@dataclass
class Worker:
    """A worker process."""

    epoch: Epoch
    stage_index: int
    node_ids: tuple[str, ...]
    digest: str = ""
    state: WorkerState = WorkerState.STARTING
    key: bytes = b""
    hangs: bool = False


class SimNode:
    """One node: its drive and clock, and while it is up its machine and worker.

    Attributes:
        node_id: What its certificate says.
        away: "frozen" (stopped; what comes in waits) or "asleep" (what comes in is lost), or None.
        resting: A process that outlived its epoch and waits for a plan that can use its layers.
        queue: What waits until it is back.
        slowness: Seconds that each event takes.
        busy_until: When it is through with what came before.
        boots: Daemons started so far; names one life of the node.
        nonce: The boot nonce of this life.
        is_leaving: Whether it was asked to go down in this life.
        has_left: Whether it has said goodbye in this life.
        open_requests: Whom it has not answered yet, by request.
        denied_requests: Those whose senders it knew to be evicted.
        open_changes: Changes of people that it has not ended.
        outcomes: What became of them.
        is_off: Its machine has no power: it does not even refuse.
        is_gone: It left for good: it was evicted, left, or lost its identity.
        desk: The requests of this life; None where it has taken none.
        checked: What it had in mind and on its drive when the checker last found nothing wrong with a
            coordinator here.
    """

    def __init__(self, node_id: str, facts: NodeFacts, *, founder: bool) -> None:
        self.node_id = node_id
        self.facts = facts
        self.founder = founder
        self.drive = Drive()
        self.clock = NodeClock()
        self.boots = 0
        self.nonce = 0
        self.is_leaving = False
        self.has_left = False
        self.machine: ClusterMachine | None = None
        self.worker: Worker | None = None
        self.resting: Worker | None = None
        self.next_tick: float | None = None
        self.away: Literal["frozen", "asleep"] | None = None
        self.queue: deque[ev.Event] = deque()
        self.slowness = 0.0
        self.busy_until = 0.0
        self.open_requests: dict[int, str] = {}
        self.denied_requests: set[int] = set()
        self.open_changes: set[int] = set()
        self.outcomes: list[fx.ChangeAccepted | fx.ChangeDone | fx.ChangeRejected] = []
        self.is_off = False
        self.is_gone = False
        self.desk: Desk | None = None
        self.checked: tuple[PersistentState, PersistentState] | None = None

    @property
    def up(self) -> ClusterMachine:
        assert self.machine is not None, f"{self.node_id} is down"
        return self.machine

    @property
    def disk(self) -> PersistentState:
        """What is durable."""
        return self.drive.state

    @disk.setter
    def disk(self, state: PersistentState) -> None:
        self.drive.state = state
