"""Invariant 6 of requests: every accepted request ends once, its tokens are delivered once, in order and right.

To it come: a token is logged before it is sent, none comes of a run that was given up or of a plan that another
one has replaced, a run begins only under a plan that is committed (or the node's own) and exactly behind the log,
waiting has its limit, and of an ended request nothing runs on.
"""

from typing import TYPE_CHECKING, NoReturn

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests import Finish
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from simulator.checker import Checker, InvariantBrokenError

from .tokens import STOP

if TYPE_CHECKING:
    from .clients import Client
    from .desk import Live

_MOST_FRUITLESS_RUNS = 200
_OF_RUNS = (ev.Token, ev.Queued, ev.RunFailed)
_NO_FAULT_OF_PROGRAMS = frozenset(
    {
        "NO_MODEL_LOADED",
        "NOT_READY",
        "NO_QUORUM",
        "DOES_NOT_FIT",
        "EPOCH_CHANGED",
        "WORKER_FAILED",
        "PEER_UNREACHABLE",
        "SHUTTING_DOWN",
        "RESOURCE_EXHAUSTED",
    }
)


class RequestChecker:
    """Looks at every step of every request, and at what every client gets."""

    def __init__(self, cluster: Checker) -> None:
        self._cluster = cluster
        self.accepted = self.replayed = self.resumed = 0
        self.ends: dict[str, int] = {}

    # -- the API node ---------------------------------------------------------------------------------

    def on_step(
        self, live: "Live", event: ev.Event, run_before: int | None, effects: list[fx.Effect], now: float
    ) -> None:
        """A request's machine has taken an event."""
        machine = live.machine
        if live.end is not None and effects:
            self._fail(live, f"{effects[0]} after its end, {live.end}")
        if type(event) in _OF_RUNS and event.run != run_before and effects:  # type: ignore[union-attr]
            self._fail(live, f"{event} of a run that was given up is believed")
        ends = sum(isinstance(effect, (fx.Finished, fx.Cancelled, fx.Failed)) for effect in effects)
        if ends > 1:
            self._fail(live, "two ends in one step")
        if machine.state == "waiting":
            self._check_patience(live, event, now)
        elif live.waiting_since is not None:
            live.waited_seconds += now - live.waiting_since
            live.waiting_since = None

    def _check_patience(self, live: "Live", event: ev.Event, now: float) -> None:
        if live.waiting_since is None:
            live.waiting_since = now
        limit = live.waiting_since + max(0.0, live.patience_seconds - live.waited_seconds)
        deadline = live.machine.next_deadline()
        if deadline is None or deadline > limit + 1e-6:
            self._fail(live, f"it waits until {deadline}, its patience ends at {limit}")
        if isinstance(event, ev.Tick) and now >= limit + 1e-6:
            self._fail(live, f"it waits beyond its patience, which ended at {limit}")

    def on_run(self, live: "Live", run: fx.Run, *, is_own_plan: bool) -> None:  # noqa: C901  one rule, one branch
        """A run is asked for."""
        if live.run is not None:
            self._fail(live, f"run {run.number} beside another")
        if list(run.generated_token_ids) != live.delivered:
            self._fail(
                live,
                f"run {run.number} begins behind {len(run.generated_token_ids)} tokens, "
                f"{len(live.delivered)} were delivered",
            )
        if run.prompt_token_ids != live.wish.prompt:
            self._fail(live, f"run {run.number} has another prompt")
        if run.max_tokens != live.wish.max_tokens:
            self._fail(live, f"run {run.number} is to generate {run.max_tokens} tokens")
        if not (run.epoch in self._cluster.committed_epochs or (run.epoch.is_local and is_own_plan)):
            self._fail(live, f"run {run.number} under {run.epoch}, which is not committed")
        plan = self._cluster.plans.get(run.epoch)
        if plan is not None:
            deployment = plan.deployments[0]
            if deployment.stages[0].node_id != run.head_node_id:
                self._fail(live, f"run {run.number} is asked of {run.head_node_id}, which is not the head")
            if deployment.model is None or deployment.model.digest != live.digest:
                self._fail(live, f"run {run.number} is of another model")
        if live.runs:
            self.replayed += 1
        live.runs += 1
        live.fruitless += 1
        if live.fruitless > _MOST_FRUITLESS_RUNS:
            self._fail(live, f"{live.fruitless} runs without a token")

    def on_lost(self, live: "Live", lost: fx.RunLost) -> None:
        """A run is given up."""
        run = live.run
        if run is not None and run.number == lost.number and not run.is_told:
            self._fail(live, f"run {run.number} is given up and not cancelled")

    def on_deliver(
        self, live: "Live", deliver: fx.Deliver, epoch: Epoch | None, seen: ev.PlanSeen | None
    ) -> None:
        """A token is about to be sent."""
        log = live.machine.log.token_ids
        if deliver.index >= len(log) or log[deliver.index] != deliver.token_id:
            self._fail(live, f"token {deliver.index} is sent before it is logged")
        if deliver.index != len(live.delivered):
            self._fail(live, f"token {deliver.index} is sent after {len(live.delivered)} tokens")
        if deliver.token_id != live.truth.at(deliver.index):
            self._fail(
                live, f"token {deliver.index} is {deliver.token_id}, not {live.truth.at(deliver.index)}"
            )
        newest = seen.epoch if isinstance(seen, (ev.PlanReady, ev.PlanPending)) else None
        if newest is not None and newest != epoch:
            self._fail(live, f"token {deliver.index} comes of {epoch}, the plan is {newest}")

    def on_end(self, live: "Live", end: fx.End, now: float) -> None:
        """A request has its end at its API node."""
        if live.end is not None:
            self._fail(live, f"a second end, {end} after {live.end}")
        if live.run is not None and not live.run.is_told:
            self._fail(live, f"{end}, and run {live.run.number} is not cancelled")
        if live.machine.run is not None or live.machine.next_deadline() is not None:
            self._fail(live, f"{end}, and it goes on")
        if isinstance(end, fx.Finished):
            self._check_finish(live, end.finish)
        elif isinstance(end, fx.Failed):
            if end.reason not in _NO_FAULT_OF_PROGRAMS:
                self._fail(live, f"it failed by {end.reason}: {end.message}")
            waited = live.waited_seconds + (
                now - live.waiting_since if live.waiting_since is not None else 0.0
            )
            if "has waited" in end.message and waited + 1e-6 < live.patience_seconds:
                self._fail(live, f"it has waited {waited:.1f} s only")
        elif not live.is_client_gone:
            self._fail(live, "it was cancelled by nobody")
        name = type(end).__name__.lower() + (f" {end.reason}" if isinstance(end, fx.Failed) else "")
        self.ends[name] = self.ends.get(name, 0) + 1

    def _check_finish(self, live: "Live", finish: Finish) -> None:
        count = len(live.delivered)
        is_stop = count > 0 and (live.delivered[-1] == STOP or count == live.wish.text_stop)
        if finish is Finish.STOP and not is_stop:
            self._fail(live, f"it stopped behind {count} tokens for nothing")
        if finish is Finish.LENGTH and count != live.wish.max_tokens:
            self._fail(live, f"it ended at {count} tokens of {live.wish.max_tokens}")

    # -- clients --------------------------------------------------------------------------------------

    def on_token(self, client: "Client", index: int, token_id: int) -> None:
        """A client gets a token."""
        if client.end:
            self._fail(client, f"token {index} after its end, {client.end}")
        if index != len(client.tokens):
            self._fail(client, f"token {index} came after {len(client.tokens)} tokens")
        assert client.truth is not None
        if token_id != client.truth.at(index):
            self._fail(client, f"token {index} came as {token_id}, not {client.truth.at(index)}")

    def on_client_end(self, client: "Client", end: str) -> None:
        """A client is told the end, or gives up."""
        if client.end:
            self._fail(client, f"a second end, {end} after {client.end}")
        if end == "finished":
            count = len(client.tokens)
            is_stop = count > 0 and (client.tokens[-1] == STOP or count == client.wish.text_stop)
            if not is_stop and count != client.wish.max_tokens:
                self._fail(client, f"finished with {count} of {client.wish.max_tokens} tokens")

    def _fail(self, who: "Live | Client", what: str) -> NoReturn:
        raise InvariantBrokenError(f"request {who.wish.name} at {who.node.node_id}: {what}")
