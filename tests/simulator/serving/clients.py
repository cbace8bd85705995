"""Clients, each with its own copy of the tokens, as the SDK has it: it takes its request to another node.

A client is a machine outside of the cluster. Its connection is in order; it breaks where the daemon's process
ends, and where nothing is to be heard of the node for a while.
"""

from typing import TYPE_CHECKING

from simulator.node import SimNode

from .tokens import Model, Truth, Wish

if TYPE_CHECKING:
    from collections.abc import Callable

    from .desk import Live
    from .serving import Serving

SILENCE_SECONDS = 5.0
RECOVERY_SECONDS = 60.0
"""How long a client tries to go on without an answer."""
_LATENCY_SECONDS = 0.004
_LONGEST_PAUSE_SECONDS = 2.0
_LOSSES = frozenset({"SHUTTING_DOWN"})


class Client:
    """One request as its client sees it.

    Attributes:
        wish: What it wants.
        node: Whom it has asked last.
        resumes: Whether it has a copy of its tokens and goes on elsewhere; an HTTP client has not.
        tokens: What it has got.
        digest: Of the model that answers, once it was told.
        end: "finished", "cancelled", "gone", "broken", "lost", "refused ..." or "failed ..."; once.
        conn: Its connection.
        attempts: How often it was taken up.
        pauses: How often it was told that it waits.
    """

    def __init__(self, wish: Wish, node: SimNode, *, resumes: bool) -> None:
        self.wish = wish
        self.node = node
        self.resumes = resumes
        self.tokens: list[int] = []
        self.request_id = ""
        self.digest = ""
        self.truth: Truth | None = None
        self.end = ""
        self.conn: Connection | None = None
        self.attempts = 0
        self.tries = 0
        self.lost_at: float | None = None
        self.pauses: list[str] = []


class Connection:
    """From a client to one life of an API node."""

    __slots__ = ("attempt", "boots", "client", "is_closed", "is_open", "live", "next_arrival", "node")

    def __init__(self, client: Client, node: SimNode, attempt: int) -> None:
        self.client = client
        self.node = node
        self.boots = node.boots
        self.attempt = attempt
        self.live: Live | None = None
        self.next_arrival = 0.0
        self.is_open = True
        self.is_closed = False


class Clients:
    """All of them."""

    def __init__(self, serving: "Serving") -> None:
        self._serving = serving
        self._world = serving.world
        self._rng = serving.rng
        self.all: list[Client] = []

    def submit(self, wish: Wish, node: SimNode, *, resumes: bool) -> Client:
        """Let a new client ask a node."""
        client = Client(wish, node, resumes=resumes)
        self.all.append(client)
        self._connect(client)
        return client

    def leave(self, client: Client, *, silently: bool) -> None:
        """Let a client cancel, or die: then its node notices later."""
        if client.end:
            return
        self._end(client, "gone" if silently else "cancelled")
        if client.conn is not None:
            self._close(client.conn, self._rng.uniform(0.0, 3.0) if silently else self._latency())

    def break_off(self, client: Client) -> None:
        """Let a client lose its connection, while its node lives."""
        if client.conn is not None and not client.end:
            conn = client.conn
            self._close(conn, self._rng.uniform(0.0, 3.0))
            self._lost(conn)

    # -- to the node ----------------------------------------------------------------------------------

    def _connect(self, client: Client) -> None:
        if client.end:
            return
        attempt = client.attempts = client.attempts + 1 if client.request_id else 0
        conn = client.conn = Connection(client, client.node, attempt)
        self._world.later(self._latency(), self._ask, conn)

    def _ask(self, conn: Connection) -> None:
        node = conn.node
        if not conn.is_open:
            return
        if node.machine is None or node.boots != conn.boots:
            self._world.later(SILENCE_SECONDS if node.is_off else self._latency(), self._lost, conn)
        elif node.away is not None:
            self._serving.wait_for(node, self._ask, conn)
            self._world.later(SILENCE_SECONDS, self._listen, conn)
        elif not conn.is_closed:
            self._world.later(SILENCE_SECONDS, self._listen, conn)
            self._serving.accept(conn)

    def _close(self, conn: Connection, seconds: float) -> None:
        """The client leaves a connection: its node hears of it after a while."""
        conn.is_open = False
        self._world.later(seconds, self._closed, conn)

    def _closed(self, conn: Connection) -> None:
        node = conn.node
        conn.is_closed = True
        if node.machine is None or node.boots != conn.boots:
            return
        if node.away is not None:
            self._serving.wait_for(node, self._closed, conn)
        elif conn.live is not None:
            self._serving.client_gone(conn.live)

    # -- to the client --------------------------------------------------------------------------------

    def tell(self, conn: Connection, what: "Callable[..., None]", *args: object) -> None:
        """Send a client something, behind all that was sent before."""
        now = self._world.now
        conn.next_arrival = max(conn.next_arrival, now + self._latency())
        self._world.later(conn.next_arrival - now, self._arrive, conn, what, args)

    def _arrive(self, conn: Connection, what: "Callable[..., None]", args: tuple[object, ...]) -> None:
        if conn.is_open and not conn.client.end:
            conn.client.lost_at = None
            what(conn.client, *args)

    def accepted(self, client: Client, request_id: str, digest: str) -> None:
        """It was taken, or taken up."""
        if not client.request_id:
            client.request_id, client.digest = request_id, digest
            client.truth = Truth(Model(digest, client.wish, client.wish.prompt))

    def token(self, client: Client, index: int, token_id: int) -> None:
        """A token arrives."""
        self._serving.checker.on_token(client, index, token_id)
        client.tokens.append(token_id)
        client.tries = 0

    def paused(self, client: Client, reason: str) -> None:
        """It is told that it waits."""
        client.pauses.append(reason)

    def ended(self, client: Client, end: str) -> None:
        """It is told the end."""
        conn = client.conn
        assert conn is not None
        if client.resumes and end.partition(" ")[2] in _LOSSES:
            self._lost(conn)
            return
        conn.is_open = False
        self._end(client, end)

    def _end(self, client: Client, end: str) -> None:
        self._serving.checker.on_client_end(client, end)
        client.end = end
        self._world.tale.tell(
            self._world.now, "--", f"client of {client.wish.name}: {end}, {len(client.tokens)} tokens"
        )

    # -- losses ---------------------------------------------------------------------------------------

    def node_crashed(self, node: SimNode) -> None:
        """A daemon is gone: its connections break behind what was sent, unless the machine has no power."""
        if node.is_off:
            return
        for client in self.all:
            conn = client.conn
            if conn is not None and conn.is_open and conn.node is node and conn.boots == node.boots:
                conn.next_arrival = max(conn.next_arrival, self._world.now + self._latency())
                self._world.later(conn.next_arrival - self._world.now, self._lost, conn)

    def _listen(self, conn: Connection) -> None:
        """Every now and then: is anything to be heard of the node?"""
        node = conn.node
        if not conn.is_open or conn.client.end:
            return
        if node.machine is not None and node.boots == conn.boots and node.away is None:
            self._world.later(SILENCE_SECONDS, self._listen, conn)
            return
        self._close(conn, self._latency())
        self._lost(conn)

    def _lost(self, conn: Connection) -> None:
        """A client's node is lost: it asks the next one."""
        client = conn.client
        if client.end or client.conn is not conn:
            return
        conn.is_open = False
        now = self._world.now
        if client.lost_at is None:
            client.lost_at = now
        if not client.resumes:
            self._end(client, "broken")
            return
        if now > client.lost_at + RECOVERY_SECONDS:
            self._end(client, "lost")
            return
        names = list(self._world.nodes)
        client.node = self._world.nodes[names[(names.index(client.node.node_id) + 1) % len(names)]]
        pause = (
            0.0
            if client.tries < len(names)
            else min(0.1 * 2.0 ** (client.tries - len(names)), _LONGEST_PAUSE_SECONDS)
        )
        client.tries += 1
        self._world.later(pause, self._connect, client)

    def _latency(self) -> float:
        return 0.0002 + self._rng.random() * _LATENCY_SECONDS
