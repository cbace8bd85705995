"""What the shell tells the machine: the inputs of `ClusterMachine.step`."""

from dataclasses import dataclass
from typing import Literal

from .messages import Deployment, Epoch, NodeFacts, Request, Response, WantedModel, WorkerReport
from .quick import quickly_made

FailureKind = Literal["refused", "lost", "deadline", "error"]
"""How a request failed, none of which proves that its handler did not run.

* refused: the peer's machine answered, this very time, that nobody listens there
* lost: a connection ended before the answer, or could not be made, without that
* deadline: silence
* error: something answered with an error, or the request could not be sent
"""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Due at `ClusterMachine.next_deadline` at the latest; harmless at any other time."""


@dataclass(frozen=True, slots=True)
class CandidateVerified:
    """A mutual-TLS Hello with ``node_id`` succeeded, in either direction. May be told again at any time.

    Attributes:
        node_id: From its certificate.
        addresses: host:port, those that answered first.
        facts: Its machine, as it told.
        boot_nonce: As it told.
        discovery: How it was found: "mdns", "static" or "peer"; "self" where this node itself has moved.
        has_cluster: Whether it belongs to a document with members already.
    """

    node_id: str
    addresses: tuple[str, ...]
    facts: NodeFacts
    boot_nonce: int
    discovery: str
    has_cluster: bool


@quickly_made
@dataclass(frozen=True, slots=True)
class RequestReceived:
    """A peer called. Exactly one `Reply` with this ``request_id`` follows, perhaps in a later step.

    Attributes:
        request_id: Not negative, used once.
        sender: Node id from the caller's certificate.
        message: What it asks.
    """

    request_id: int
    sender: str
    message: Request


@quickly_made
@dataclass(frozen=True, slots=True)
class ResponseReceived:
    """The answer to a `Send`.

    Attributes:
        peer: The callee.
        message: Its answer.
        round_trip_ms: From sending the request to this answer.
    """

    peer: str
    message: Response
    round_trip_ms: float


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A `Send` got no answer before its deadline, or an error. Each Send ends in this or `ResponseReceived`.

    Attributes:
        peer: The callee.
        message: The request, as it was in the Send.
        kind: How it failed, as far as the shell knows.
        reason: For people.
    """

    peer: str
    message: Request
    kind: FailureKind
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """A connection to a peer that stood has ended, and this node did not end it: worth asking at once.

    Attributes:
        peer: Whom it led to.
    """

    peer: str


@dataclass(frozen=True, slots=True)
class PlanComputed:
    """The planner's answer to `ComputePlan`.

    Attributes:
        request_id: That of the ComputePlan.
        deployment: What to run; None to run nothing.
    """

    request_id: int
    deployment: Deployment | None


@dataclass(frozen=True, slots=True)
class PlanRefused:
    """The planner found no plan that fits, or could not profile the model.

    Attributes:
        request_id: That of the ComputePlan.
        reason: UPPER_SNAKE.
        refusal_json: The refusal for `status`, with the deficit and what would fit; "" where there is none.
    """

    request_id: int
    reason: str
    refusal_json: str


@dataclass(frozen=True, slots=True)
class LoadWanted:
    """Someone wants the cluster to serve ``wanted`` in place of what it serves.

    Ends in `ChangeDone` or `ChangeRejected` with this ``change_id``; `ChangeAccepted` may come before either.
    """

    change_id: int
    wanted: WantedModel


@dataclass(frozen=True, slots=True)
class UnloadWanted:
    """Someone wants the cluster to serve nothing. Ends as `LoadWanted` does."""

    change_id: int


@dataclass(frozen=True, slots=True)
class EvictWanted:
    """Someone wants a node gone for good: out of the plan, out of the members, and denied from then on.

    The node may be this one, or no member at all. Ends in `ChangeDone` once the document that denies it is
    committed, or in `ChangeRejected`: LAST_VOTER where nobody could take over, and those of `LoadWanted`.
    """

    change_id: int
    node_id: str


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """Someone wants a member to serve no stage; it stays a member and goes on voting.

    Ends in `ChangeDone` once the document that says so is committed (the plan moves after that), or in
    `ChangeRejected`: UNKNOWN_NODE, the planner's reason where no plan fits without the member, SUPERSEDED by a later
    wish for the same member, and those of `LoadWanted`.

    Attributes:
        change_id: Echoed.
        node_id: The member.
        force: Also where no plan fits without it.
        leave: It says goodbye once it serves no stage, and again after each start, until the drain is undone.
    """

    change_id: int
    node_id: str
    force: bool = False
    leave: bool = False


@dataclass(frozen=True, slots=True)
class UndrainWanted:
    """Someone wants a member to be planned again. Ends as `DrainWanted` does."""

    change_id: int
    node_id: str


@dataclass(frozen=True, slots=True)
class HandOverWanted:
    """Someone wants another voter to coordinate, where this node does and one is there. Ends in nothing."""


@dataclass(frozen=True, slots=True)
class RecoverWanted:
    """An operator says that the quorum is lost for good: go on from this node's document, as its only voter.

    Begins a new generation. What the others committed and this node has not stored is given up, whatever runs
    anywhere under an older generation ends, and the members rejoin as they are reached. Ends in `ChangeDone`,
    or in `ChangeRejected`: NO_DOCUMENT, EVICTED, or HAS_QUORUM where a coordinator leads.
    """

    change_id: int


@dataclass(frozen=True, slots=True)
class LeaveWanted:
    """This node goes down in order, or its machine goes to sleep. Ends in `LeaveFinished`.

    It stays a member. Tell `LeaveCancelled` where it does not go after all.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class LeaveCancelled:
    """This node stays, or is back from the sleep that it announced."""


@dataclass(frozen=True, slots=True)
class PrepareChecked:
    """The answer to `CheckPrepare`: whether this node can run its stage of the plan named by ``epoch``."""

    epoch: Epoch
    ok: bool
    reason: str


@dataclass(frozen=True, slots=True)
class WorkerReported:
    """This node's own worker changed state or made progress. Told in the order in which it happened."""

    report: WorkerReport


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    """That epoch has ended here, as `StopWorker` asks or by itself: nothing serves it, or reports on it, any more.

    Its process is gone, or rests: then it holds its layers for a later plan, and does nothing.
    """

    epoch: Epoch


@dataclass(frozen=True, slots=True)
class FactsChanged:
    """This node's machine is another than it was, such as by a cable. A running plan is not touched for it."""

    facts: NodeFacts


@dataclass(frozen=True, slots=True)
class LocalHealth:
    """How this node itself fares.

    Attributes:
        score: 0 where all is well; each point makes this node one verdict slower to call others dead.
        slept: The machine slept or the process was stopped since the last event.
    """

    score: int
    slept: bool = False


Event = (
    Tick
    | CandidateVerified
    | RequestReceived
    | ResponseReceived
    | RequestFailed
    | ConnectionLost
    | PlanComputed
    | PlanRefused
    | LoadWanted
    | UnloadWanted
    | EvictWanted
    | DrainWanted
    | UndrainWanted
    | HandOverWanted
    | RecoverWanted
    | LeaveWanted
    | LeaveCancelled
    | PrepareChecked
    | WorkerReported
    | WorkerStopped
    | FactsChanged
    | LocalHealth
)
