"""Who is coordinator: Raft's term voting with pre-vote, check-quorum and stickiness.

The term of the papers is here the pair (generation, term), so that a forced recovery, which raises the
generation, outranks every term before it. Sources: Ongaro, "Consensus: Bridging Theory and Practice" (2014),
sections 3.4 (election), 6.2 (leadership with a quorum's answers only), 9.6 (pre-vote and disruptive servers).
"""

from typing import TYPE_CHECKING

from .messages import Ballot, RequestVoteRequest, RequestVoteResponse, TransferLeadershipResponse
from .quorum import is_quorum, weights

if TYPE_CHECKING:
    from collections.abc import Callable

    from .context import Context
    from .view import Role


class Election:
    """This node's part in elections.

    Args:
        context: Shared with the other parts.
        on_elected: Called with the time at which votes were asked for, and the voters, when this node won.
        on_stepped_down: Called with the reason when this node is no longer coordinator.
    """

    def __init__(
        self,
        context: "Context",
        on_elected: "Callable[[float, frozenset[str]], None]",
        on_stepped_down: "Callable[[str], None]",
    ) -> None:
        self._context = context
        self._on_elected = on_elected
        self._on_stepped_down = on_stepped_down
        self._votes: set[str] = set()
        self._asked_at = context.now
        self._heard_at: float | None = None
        self._coordinator_seen: tuple[Ballot, str] | None = None
        #: "coordinator" exactly while `on_elected` was called and `on_stepped_down` was not yet.
        self.role: Role = "follower" if context.state.document else "blank"
        #: Whom this node follows; "" where unknown; itself while it is coordinator.
        self.coordinator_id = ""
        #: When this node gives up waiting for a coordinator or for votes; None where it does not wait.
        self.deadline: float | None = None
        if context.state.document:
            self.restart_timer()

    @property
    def hears_coordinator(self) -> bool:
        """Whether a coordinator, perhaps this node, led within the shortest election timeout."""
        if self.role == "coordinator":
            return True
        minimum = self._context.settings.election_timeout_min_seconds
        return self._heard_at is not None and self._context.now - self._heard_at < minimum

    def observe(self, ballot: Ballot) -> None:
        """Take over a higher ballot; durable before anything that follows from it is told."""
        if ballot > self._context.state.ballot:
            self._context.persist(generation=ballot[0], term=ballot[1], voted_for="")
            self._heard_at = None
            self.step_down(f"term {ballot[1]} of generation {ballot[0]} has begun")

    def accept_coordinator(self, sender: str, ballot: Ballot) -> str:
        """Take ``sender`` as the coordinator of ``ballot``, or give the reason why not.

        Only the coordinator of a ballot sends in its name, and its certificate says who it is.
        """
        context = self._context
        if ballot < context.state.ballot:
            return f"term {ballot[1]} of generation {ballot[0]} is over"
        if sender == context.node_id:
            is_own = self.role == "coordinator" and ballot == context.state.ballot
            return "" if is_own else f"{sender} is not coordinator any more"
        self.observe(ballot)
        seen = self._coordinator_seen
        if seen is not None and seen[0] == ballot and seen[1] != sender:
            context.announce("two coordinators in one term", term=ballot[1], other_node_id=sender)
            return f"term {ballot[1]} has another coordinator"
        if self.coordinator_id != sender:
            context.announce("coordinator followed", coordinator_node_id=sender, term=ballot[1])
        self._coordinator_seen = (ballot, sender)
        self.coordinator_id = sender
        self.role = "follower"
        self._heard_at = context.now
        self.restart_timer()
        return ""

    def step_down(self, reason: str) -> None:
        """Become a follower of nobody; the timer starts anew."""
        was_coordinator = self.role == "coordinator"
        self.role = "follower" if self._context.state.document else "blank"
        self.coordinator_id = ""
        self._votes = set()
        self.restart_timer()
        if was_coordinator:
            self._context.announce("coordinator stepped down", term=self._context.state.term, reason=reason)
            self._on_stepped_down(reason)

    def woke_up(self) -> None:
        """Forget every promise that time gave: the machine has slept."""
        self._heard_at = None
        self.step_down("the machine slept")
        if self.deadline is not None:
            self.deadline += self._context.settings.wake_grace_seconds

    def was_away(self) -> None:
        """Do not take the own absence for the coordinator's: wait anew before campaigning."""
        if self.role != "coordinator":
            self.role = "follower" if self._context.state.document else "blank"
            self._votes = set()
            self.restart_timer()

    def on_transfer(self, request_id: int, sender: str, ballot: Ballot) -> None:
        """The coordinator asks this node to take over: campaign at once, without asking beforehand."""
        context = self._context
        refused = self.accept_coordinator(sender, ballot) or self._cannot_campaign()
        if not refused:
            context.announce("leadership offered", node_id=sender)
            self._campaign(transfer=True)
        generation, term = context.state.ballot
        context.reply(request_id, TransferLeadershipResponse(generation, term, not refused, refused))

    def _cannot_campaign(self) -> str:
        """Why this node must not become coordinator; "" where it may.

        A document of an older generation names the voters of that generation. They decide nothing in this one:
        with their votes a second coordinator could overrule what the quorum of the recovery has committed.
        """
        state = self._context.state
        document = state.document
        if document is None or self._context.node_id not in weights(document):
            return "it has no vote"
        if document.generation != state.generation:
            return f"its document is of generation {document.generation}, not {state.generation}"
        if self._context.is_leaving:
            return "it goes down"
        return ""

    def on_vote_request(self, request_id: int, sender: str, request: RequestVoteRequest) -> None:
        """Grant or refuse a vote; a real vote is durable before it is told."""
        ballot = (request.generation, request.term)
        reason = self._refusal(sender, request, ballot)
        granted = not reason
        context = self._context
        if granted and not request.pre_vote:
            if context.state.voted_for != sender:
                context.persist(voted_for=sender)
            self.role = "follower" if context.state.document else "blank"
            self.restart_timer()
        told = ballot if granted else context.state.ballot
        context.reply(request_id, RequestVoteResponse(request.pre_vote, granted, told[0], told[1], reason))

    def _refusal(  # noqa: PLR0911  one rule, one return
        self, sender: str, request: RequestVoteRequest, ballot: Ballot
    ) -> str:
        context = self._context
        is_transfer = request.transfer and not request.pre_vote
        if self.hears_coordinator and sender != self.coordinator_id and not is_transfer:
            return f"coordinator {self.coordinator_id or context.node_id} is alive"
        if request.document_generation != request.generation:
            return f"its document is of generation {request.document_generation}"
        if request.pre_vote:
            if ballot <= context.state.ballot:
                return f"already in term {context.state.term}"
        else:
            if ballot < context.state.ballot:
                return f"already in term {context.state.term}"
            self.observe(ballot)
            if context.state.voted_for not in {"", sender}:
                return f"voted for {context.state.voted_for}"
        if request.document_version < context.state.document_version:
            return f"its document {request.document_version} is older than {context.state.document_version}"
        return ""

    def on_vote_response(self, peer: str, response: RequestVoteResponse) -> None:
        """Count a vote for the campaign that runs; answers to earlier ones are ignored."""
        context = self._context
        ballot = (response.generation, response.term)
        if not response.granted:
            self.observe(ballot)
            return
        generation, term = context.state.ballot
        if response.pre_vote:
            if self.role == "pre_candidate" and ballot == (generation, term + 1):
                self._votes.add(peer)
                self._count_pre_votes()
        elif self.role == "candidate" and ballot == (generation, term):
            self._votes.add(peer)
            self._count_votes()

    def tick(self) -> None:
        """Campaign, or campaign again, where the time for it has come."""
        if self.deadline is None or self._context.now < self.deadline:
            return
        self.restart_timer()
        if self.role == "coordinator":
            return
        if self.coordinator_id:
            self._context.announce("coordinator lost", coordinator_node_id=self.coordinator_id)
            self.coordinator_id = ""
        if not self._cannot_campaign():
            self.role = "pre_candidate"
            self._votes = {self._context.node_id}
            self._retry_soon()
            generation, term = self._context.state.ballot
            self._ask_for_votes((generation, term + 1), pre_vote=True)
            self._count_pre_votes()

    def campaign_soon(self) -> None:
        """Let the next tick campaign: the first document was just made."""
        self.role = "follower"
        self.deadline = self._context.now

    def _count_pre_votes(self) -> None:
        document = self._context.state.document
        if document is not None and is_quorum(document, self._votes):
            self._campaign(transfer=False)

    def _campaign(self, *, transfer: bool) -> None:
        """Ask for votes in the next term, which is durable before anybody hears of it."""
        generation, term = self._context.state.ballot
        self.coordinator_id = ""
        self._context.persist(term=term + 1, voted_for=self._context.node_id)
        self.role = "candidate"
        self._votes = {self._context.node_id}
        self._asked_at = self._context.now
        self._retry_soon()
        self._context.announce("election begun", term=term + 1)
        self._ask_for_votes((generation, term + 1), pre_vote=False, transfer=transfer)
        self._count_votes()

    def _count_votes(self) -> None:
        context = self._context
        if context.state.document is None or not is_quorum(context.state.document, self._votes):
            return
        self.role = "coordinator"
        self.coordinator_id = context.node_id
        self._coordinator_seen = (context.state.ballot, context.node_id)
        self.deadline = None
        context.announce(
            "coordinator elected",
            coordinator_node_id=context.node_id,
            term=context.state.term,
            votes=sorted(self._votes),
        )
        self._on_elected(self._asked_at, frozenset(self._votes))

    def _ask_for_votes(self, ballot: Ballot, *, pre_vote: bool, transfer: bool = False) -> None:
        document = self._context.state.document
        if document is None:
            return
        request = RequestVoteRequest(pre_vote, *ballot, *document.version, transfer)
        for node_id in weights(document):
            if node_id != self._context.node_id:
                self._context.send(node_id, request, self._context.settings.rpc_deadline_seconds)

    def _retry_soon(self) -> None:
        settings = self._context.settings
        shortest, longest = settings.campaign_retry_min_seconds, settings.campaign_retry_max_seconds
        self.deadline = self._context.now + self._context.rng.uniform(shortest, longest)

    def restart_timer(self) -> None:
        """Wait anew for a coordinator or for votes; a node without a document does not wait."""
        context = self._context
        if context.state.document is None:
            self.deadline = None
            return
        settings = context.settings
        shortest = settings.election_timeout_min_seconds
        if context.facts.portable:
            shortest += settings.portable_bias_seconds
        longest = settings.election_timeout_max_seconds
        self.deadline = context.now + (shortest + (longest - shortest) * context.rng.random())
