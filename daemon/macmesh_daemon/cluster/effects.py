"""What the machine tells the shell to do: the outputs of `ClusterMachine.step`.

The shell owes the machine this:

1. Effects are executed strictly in order, those of one step before those of the next.
2. A `Persist` is durable before any later effect starts. Where it cannot be made durable, the daemon ends.
3. Every other effect is started in order and need not be waited for.
4. Every `Send` ends in one `ResponseReceived` or `RequestFailed`, every `ComputePlan` in one `PlanComputed`
   or `PlanRefused`, every `CheckPrepare` in one `PrepareChecked`, every `StopWorker` in one `WorkerStopped`
   (kill after its deadline). A `StartWorker` that fails is a `WorkerReported` in state FAILED.
5. A process that outlives its epoch serves nothing and reports nothing until a `StartWorker` takes it up. It ends
   by itself where none does within a bounded time.
"""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from .messages import (
    Deployment,
    Epoch,
    Member,
    Plan,
    Request,
    Response,
    SetPeersRequest,
    Stage,
    Version,
    WantedModel,
)
from .quick import quickly_made
from .state import PersistentState

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Persist:
    """Make ``state`` durable, in place of the one before."""

    state: PersistentState


@quickly_made
@dataclass(frozen=True, slots=True)
class Send:
    """Call ``peer``, which is never this node itself."""

    peer: str
    message: Request
    deadline_seconds: float


@quickly_made
@dataclass(frozen=True, slots=True)
class Reply:
    """Answer a `RequestReceived`."""

    request_id: int
    message: Response


@dataclass(frozen=True, slots=True)
class TransportFailure:
    """A transport has failed between these nodes, and neither they nor their devices changed since."""

    node_ids: frozenset[str]
    reason: str
    transport: str


@dataclass(frozen=True, slots=True)
class ComputePlan:
    """Compute a plan.

    Attributes:
        request_id: To be echoed.
        wanted: What to plan for.
        members: The members that may be used, with their facts as of now.
        current: The plan that runs now; None or without deployments where nothing runs.
        transport_failures: Where the plan must not use a transport again.
    """

    request_id: int
    wanted: WantedModel
    members: tuple[Member, ...]
    current: Plan | None
    transport_failures: tuple[TransportFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class CheckPrepare:
    """Check that this node can run ``stage`` of ``plan``: model at hand, ledger fits. Changes nothing.

    Attributes:
        plan: What is prepared.
        stage: This node's part of it.
        read_ahead_seconds: The plan that runs still serves: before the answer, weights that the stage needs may be
            read ahead for so long, that the switch is short.
    """

    plan: Plan
    stage: Stage
    read_ahead_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StartWorker:
    """Start the worker of this node's stage. No process serves an epoch here: the machine has seen to it.

    A process that was kept takes the stage up where it can, else it is ended first.
    """

    epoch: Epoch
    deployment: Deployment
    stage_index: int


@dataclass(frozen=True, slots=True)
class StopWorker:
    """End ``epoch`` in its worker; kill the process where it still serves after ``deadline_seconds``.

    Attributes:
        epoch: What ends.
        deadline_seconds: For its end.
        keep: The process may live on with its layers: the plan that comes next can use them. Else it ends too.
    """

    epoch: Epoch
    deadline_seconds: float
    keep: bool = False


@dataclass(frozen=True, slots=True)
class ReleaseWorker:
    """No plan of this node needs what a kept process holds: end it, where there is one."""


@dataclass(frozen=True, slots=True)
class GivePeers:
    """Give this node's own worker the addresses and the key of its epoch."""

    request: SetPeersRequest


@dataclass(frozen=True, slots=True)
class ChangeAccepted:
    """The change is in the committed document. It survives a change of coordinator."""

    change_id: int
    document_version: Version


@dataclass(frozen=True, slots=True)
class ChangeDone:
    """The plan that answers the change is committed under ``epoch``. The view tells when it is ready."""

    change_id: int
    epoch: Epoch


@dataclass(frozen=True, slots=True)
class ChangeRejected:
    """The change came to nothing, or (after `ChangeAccepted`) its outcome is no longer known here.

    Attributes:
        change_id: That of the event.
        reason: NOT_COORDINATOR (ask the coordinator that the view names), NO_QUORUM, COORDINATOR_CHANGED
            (it was accepted; the next coordinator goes on with it), SUPERSEDED (by a later change), UNKNOWN_NODE,
            or the planner's.
        message: For people.
        refusal_json: The planner's refusal; "" where there is none.
    """

    change_id: int
    reason: str
    message: str
    refusal_json: str = ""


@dataclass(frozen=True, slots=True)
class LeaveFinished:
    """The answer to `LeaveWanted`: the cluster knows, or nobody is there to tell. Go down now."""


@dataclass(frozen=True, slots=True)
class Announce:
    """A decision, for logs and watchers.

    Attributes:
        event: Constant lower-case phrase.
        facts: Values that JSON can hold.
    """

    event: str
    facts: "Mapping[str, object]" = field(default_factory=lambda: MappingProxyType({}))


Effect = (
    Persist
    | Send
    | Reply
    | ComputePlan
    | CheckPrepare
    | StartWorker
    | StopWorker
    | ReleaseWorker
    | GivePeers
    | ChangeAccepted
    | ChangeDone
    | ChangeRejected
    | LeaveFinished
    | Announce
)
