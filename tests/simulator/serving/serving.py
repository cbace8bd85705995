"""Carries out what the machines of requests decide, and tells them what happens."""

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from macmesh_daemon.node.plan_seen import plan_seen, served_model
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from simulator.node import SimNode
from simulator.parts import seeded

from .checker import RequestChecker
from .clients import Client, Clients, Connection
from .desk import Desk, Live
from .heads import Heads
from .tokens import Wish

if TYPE_CHECKING:
    from simulator.simulation import Simulation


class Serving:
    """Clients, desks and heads of a world.

    Attributes:
        patience_seconds: Of every request.
        stale: Probability that a head goes on with a run that was given up.
        one_model: Whether no other is ever wanted.
        busy: Probability that a head lets a run wait, or has no room for it.
        slowest_pace_seconds: Longest time between two tokens.
    """

    def __init__(self, world: "Simulation", seed: object) -> None:
        self.world = world
        self.rng = seeded("requests", seed)
        self.checker = RequestChecker(world.checker)
        self.heads = Heads(self)
        self.clients = Clients(self)
        self.patience_seconds = 120.0
        self.busy = 0.0
        self.stale = 0.0
        self.one_model = False
        self.slowest_pace_seconds = 0.05
        self._ids = itertools.count(1)
        self._waiting: dict[str, list[tuple[Callable[..., None], tuple[Any, ...]]]] = {}

    def pace(self) -> float:
        """Seconds between two tokens of a run."""
        return self.rng.uniform(0.2, 1.0) * self.slowest_pace_seconds

    def submit(
        self,
        node: SimNode,
        *,
        tokens: int,
        resumes: bool = True,
        text_stop: int = 0,
        name: str = "",
        stops: bool = True,
    ) -> Client:
        """Let a client ask for tokens; ``stops`` says whether the model may stop before all are generated."""
        number = next(self._ids)
        prompt = tuple(self.rng.randrange(1000) for _ in range(self.rng.randrange(1, 6)))
        wish = Wish(name or f"r{number}", prompt, self.rng.getrandbits(32), tokens, text_stop, stops)
        return self.clients.submit(wish, node, resumes=resumes)

    def unended(self) -> list[Client]:
        """Clients that were told no end yet."""
        return [client for client in self.clients.all if not client.end]

    @property
    def is_quiet(self) -> bool:
        """Whether every client was told its end, every request of a node that is up has one, and nothing runs."""
        if any(not client.end for client in self.clients.all):
            return False
        return not self.open_lives() and not any(self.heads.running.values())

    def open_lives(self) -> list[Live]:
        """Requests that have no end at their API node, which is up."""
        found: list[Live] = []
        for node in self.world.nodes.values():
            desk = node.desk
            if desk is not None and node.machine is not None and desk.boots == node.boots:
                found.extend(live for live in desk.live.values() if live.end is None)
        return found

    # -- the desk of an API node ----------------------------------------------------------------------

    def accept(self, conn: Connection) -> None:
        """A client asks: its request is refused, or is accepted and begins."""
        node, client = conn.node, conn.client
        assert node.machine is not None
        view = node.machine.view
        seen = plan_seen(view)
        is_resumed = conn.attempt > 0
        model = served_model(view)
        if is_resumed:
            is_other = model is not None and model.digest != client.digest
        else:
            is_other = view.serving_state == "refused" and not (view.plan and view.plan.deployments)
        if isinstance(seen, ev.PlanWithdrawn) or model is None or is_other:
            self.clients.tell(conn, self.clients.ended, "refused NO_MODEL_LOADED")
            return
        assert model is not None
        desk = self._desk_of(node)
        request_id = client.request_id or f"{client.wish.name}.{next(self._ids)}"
        earlier = desk.live.pop(request_id, None)
        if earlier is not None:
            self.client_gone(earlier)
            if node.machine is None or node.boots != conn.boots:
                return
        now = desk.now(node, self.world.now)
        live = Live(
            node, conn, client.wish, request_id, model.digest, list(client.tokens), self.patience_seconds, now
        )
        conn.live = live
        desk.live[request_id] = live
        self.checker.accepted += 1
        self.checker.resumed += is_resumed
        what = (
            f"takes up {client.wish.name} behind {len(client.tokens)} tokens"
            if is_resumed
            else f"takes {client.wish.name}"
        )
        self.world.tale.tell(self.world.now, node.node_id, what)
        self.clients.tell(conn, self.clients.accepted, request_id, model.digest)
        if live.delivered and len(live.delivered) == live.wish.text_stop:
            self.step(live, ev.TextStopped())
            return
        desk.seen = seen
        self.step(live, seen)

    def look(self, node: SimNode) -> None:
        """Tell a node's requests, the oldest first, where its view brings news of the plan."""
        desk = node.desk
        assert desk is not None
        assert node.machine is not None
        seen = plan_seen(node.machine.view)
        if seen == desk.seen:
            return
        desk.seen = seen
        for live in list(desk.live.values()):
            if node.desk is desk:
                self.step(live, seen)

    def client_gone(self, live: Live) -> None:
        """A node hears that a client has gone."""
        live.is_client_gone = True
        self.step(live, ev.ClientGone())
        desk = live.node.desk
        if desk is not None and desk.live.get(live.request_id) is live:
            del desk.live[live.request_id]

    def step(self, live: Live, event: ev.Event) -> None:
        """Give a request's machine an event and do what it decides; perhaps crash in the middle of that."""
        node, world = live.node, self.world
        desk = node.desk
        if desk is None or node.machine is None or node.boots != live.conn.boots:
            return
        now = desk.now(node, world.now)
        before = live.machine.run
        effects = live.machine.step(event, now)
        self.checker.on_step(live, event, before, effects, now)
        crash_at = None
        faults = world.faults
        if effects and faults.crash_in_step and self.rng.random() < faults.crash_in_step:
            crash_at = self.rng.randrange(len(effects) + 1)
        for at, effect in enumerate(effects):
            if at == crash_at:
                break
            self._carry_out(live, effect, now)
            if node.desk is not desk:
                return
        if crash_at is not None:
            world.crash(node, power=self.rng.random() < faults.power_loss)
            return
        self._arm(live, desk)

    def _carry_out(self, live: Live, effect: fx.Effect, now: float) -> None:  # noqa: C901  one case per effect
        node, conn, clients = live.node, live.conn, self.clients
        if self.world._tells and not isinstance(effect, (fx.Deliver, fx.TellQueued)):
            self.world.tale.tell(self.world.now, node.node_id, live.wish.name, effect)
        match effect:
            case fx.Run():
                self.checker.on_run(live, effect, is_own_plan=self._is_own(node, effect))
                live.run = self.heads.start(live, effect)
            case fx.CancelRun():
                run, live.run = live.run, None
                if run is not None:
                    self.heads.cancel(run)
            case fx.RunLost():
                self.checker.on_lost(live, effect)
                if live.run is not None and live.run.number == effect.number:
                    live.run.is_followed = False
                    live.run = None
            case fx.Deliver():
                epoch = live.run.effect.epoch if live.run is not None else None
                desk = node.desk
                self.checker.on_deliver(live, effect, epoch, desk.seen if desk is not None else None)
                live.delivered.append(effect.token_id)
                live.waited_seconds, live.fruitless = 0.0, 0
                clients.tell(conn, clients.token, effect.index, effect.token_id)
                if effect.finish is None and len(live.delivered) == live.wish.text_stop:
                    self.step(live, ev.TextStopped())
            case fx.TellPaused():
                clients.tell(conn, clients.paused, effect.reason)
            case fx.Finished() | fx.Cancelled() | fx.Failed():
                self.checker.on_end(live, effect, now)
                live.end = effect
                if not isinstance(effect, fx.Cancelled):
                    failed = f"failed {effect.reason}" if isinstance(effect, fx.Failed) else "finished"
                    clients.tell(conn, clients.ended, failed)
                    # As the daemon does when it has told the last response.
                    self.world.later(0.001, self._forget, live)

    def _forget(self, live: Live) -> None:
        if live.conn.boots == live.node.boots:
            self.client_gone(live)

    def _arm(self, live: Live, desk: Desk) -> None:
        deadline = live.machine.next_deadline()
        if deadline is None:
            live.timer_at = None
            return
        at = max(self.world.now, live.node.clock.real(deadline))
        if live.timer_at is None or at < live.timer_at:
            live.timer_at = at
            self.world.later(at - self.world.now, self._due, live, desk, at)

    def _due(self, live: Live, desk: Desk, at: float) -> None:
        if live.timer_at != at or live.node.desk is not desk:
            return
        if live.node.away is not None:
            self.wait_for(live.node, self._due, live, desk, at)
            return
        live.timer_at = None
        self.step(live, ev.Tick())

    def _desk_of(self, node: SimNode) -> Desk:
        if node.desk is None or node.desk.boots != node.boots:
            node.desk = Desk(node.boots)
        return node.desk

    def _is_own(self, node: SimNode, run: fx.Run) -> bool:
        return run.head_node_id == node.node_id and node.machine is not None

    # -- what happens to nodes ------------------------------------------------------------------------

    def wait_for(self, node: SimNode, action: Callable[..., None], *args: Any) -> None:
        """Do something in this life of a node as soon as it is back."""
        self._waiting.setdefault(node.node_id, []).append((action, args))

    def node_back(self, node: SimNode) -> None:
        """A node is back: what has waited for it comes, in order."""
        for action, args in self._waiting.pop(node.node_id, ()):
            action(*args)

    def node_crashed(self, node: SimNode) -> None:
        """A daemon is gone, and with it its requests and runs."""
        desk, node.desk = node.desk, None
        if desk is not None:
            for live in desk.live.values():
                if live.run is not None:
                    self.heads.cancel(live.run)
        self.heads.node_crashed(node)
        self.clients.node_crashed(node)
        for action, args in self._waiting.pop(node.node_id, ()):
            action(*args)
