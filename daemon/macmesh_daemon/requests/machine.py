"""The state of one request: `step(event, now) -> effects`. See the package for what it promises.

::

    accepted ──▶ waiting ◀──▶ running ──▶ finished
        └───────────┴────────────┴──────▶ cancelled | failed

A plan that is ready turns waiting into running. A run that is lost, or whose plan is no more, turns it back; patience
counts while nothing runs, and ends in the reason that the last event gave.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

from macmesh_daemon.cluster.messages import Epoch
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev
from macmesh_daemon.requests.ask import Ask, Finish
from macmesh_daemon.requests.settings import RequestSettings
from macmesh_daemon.requests.token_log import TokenError, TokenLog

State = Literal["accepted", "waiting", "running", "finished", "cancelled", "failed"]

#: A run that ends so is lost with its stages and is followed by another one. All others are the request's own fault,
#: or one of the programs', and would come again.
LOSSES = frozenset({"EPOCH_CHANGED", "NOT_READY", "WORKER_FAILED", "PEER_UNREACHABLE", "SHUTTING_DOWN"})
_BUSY = "RESOURCE_EXHAUSTED"
_CULPRIT = "WORKER_FAILED"


class RequestMachine:
    """One request at its API node, from its acceptance to its end.

    Args:
        ask: What was asked.
        now: Clock reading at the acceptance, in seconds.
        settings: How long it waits; by default as `RequestSettings` says.
        generated: Tokens that another API node delivered before: the client brought them.
    """

    def __init__(
        self,
        ask: Ask,
        *,
        now: float,
        settings: RequestSettings | None = None,
        generated: Sequence[int] = (),
    ) -> None:
        self.ask = ask
        self.log = TokenLog(ask.request_id, ask.prompt_token_ids, accepted_at=now, token_ids=list(generated))
        self._settings = settings or RequestSettings()
        self._state: State = "accepted"
        self._is_replay = bool(generated)
        self._plan: ev.PlanReady | None = None
        # What the plan lacks: heard while a run goes on, it counts when that is lost.
        self._lacking: tuple[str, str] | None = None
        # Most tokens altogether, once a plan's context has said it.
        self._limit = ask.max_tokens
        self._runs = 0
        self._epoch = Epoch()
        # Since the last token: waits of the past, plans whose workers ended, pauses before the same plan.
        self._waited_seconds = 0.0
        self._lost_epochs: set[Epoch] = set()
        self._retries = 0
        self._waiting_since = now
        self._gives_up_at = 0.0
        self._retry_at: float | None = None
        self._missing = ("", "")
        self._facts: Mapping[str, str] = {}

    @property
    def state(self) -> State:
        """What the request does."""
        return self._state

    @property
    def ended(self) -> bool:
        """Whether it has its end; every further event is without effect."""
        return self._state in {"finished", "cancelled", "failed"}

    @property
    def run(self) -> int | None:
        """Number of the run whose tokens are taken; None where there is none."""
        return self._runs if self._state == "running" else None

    def next_deadline(self) -> float | None:
        """When a `Tick` is due; None where only another event changes anything."""
        if self._state != "waiting":
            return None
        return self._gives_up_at if self._retry_at is None else min(self._retry_at, self._gives_up_at)

    def step(self, event: ev.Event, now: float) -> list[fx.Effect]:  # noqa: PLR0911  one case per event
        """Take an event.

        Args:
            event: What happened. The first is what is known of the plan.
            now: Clock reading in seconds.
        """
        if self.ended:
            return []
        match event:
            case ev.PlanReady() | ev.PlanPending() | ev.PlanWithdrawn():
                return self._plan_seen(event, now)
            case ev.Token():
                return self._token(event, now) if event.run == self.run else []
            case ev.Queued():
                if event.run != self.run:
                    return []
                return [fx.TellQueued(event.position, event.estimate_seconds)]
            case ev.RunFailed():
                return self._run_failed(event, now) if event.run == self.run else []
            case ev.TextStopped():
                return self._end("finished", fx.Finished(Finish.STOP))
            case ev.ClientGone():
                return self._end("cancelled", fx.Cancelled())
            case ev.Tick():
                return self._tick(now)

    # Plans.

    def _plan_seen(self, event: ev.PlanSeen, now: float) -> list[fx.Effect]:
        if self._state == "accepted" and (finish := self._finish_of_log()) is not None:
            return self._end("finished", fx.Finished(finish))
        if isinstance(event, ev.PlanWithdrawn):
            return self._fail(event.reason, event.message)
        if event.model_digest != self.ask.model_digest:
            return self._fail(
                "NO_MODEL_LOADED", f"the cluster serves another model by now: {event.model_id or 'unnamed'}"
            )
        if isinstance(event, ev.PlanPending):
            return self._pending(event, now)
        return self._ready(event, now)

    def _ready(self, event: ev.PlanReady, now: float) -> list[fx.Effect]:
        known, self._plan, self._lacking = self._plan, event, None
        if self._state == "running":
            if self._epoch == event.epoch:
                return []
            lost = self._give_up("EPOCH_CHANGED", f"plan {event.epoch} took its place", now)
            return [*lost, *self._run(now)]
        is_new = known is None or known.epoch != event.epoch
        if is_new or self._retry_at is None or now >= self._retry_at:
            return self._run(now)
        return []

    def _pending(self, event: ev.PlanPending, now: float) -> list[fx.Effect]:
        self._plan = None
        missing = self._lacking = (event.reason, event.missing)
        if self._state == "running":
            # A plan without a successor serves on as long as it can: it fails by itself.
            if event.epoch is None or event.epoch == self._epoch:
                return []
            return self._give_up(*missing, now)
        if self._state == "accepted":
            return self._wait(*missing, now)
        is_news = missing != self._missing
        self._missing, self._facts, self._retry_at = missing, {}, None
        return [fx.TellPaused(*missing)] if is_news else []

    def _run(self, now: float) -> list[fx.Effect]:
        plan = self._plan
        assert plan is not None  # noqa: S101  callers have looked
        prompt, generated = len(self.ask.prompt_token_ids), len(self.log.token_ids)
        needed = prompt + (self.ask.max_tokens or generated + 1)
        if needed > plan.context_tokens:
            return self._fail(
                "CONTEXT_LENGTH_EXCEEDED",
                f"the prompt has {prompt} tokens, {generated} were generated, and room for {needed} is needed, but "
                f"the model is served with a context of {plan.context_tokens} now",
                {
                    "prompt_tokens": str(prompt),
                    "max_tokens": str(self.ask.max_tokens or generated + 1),
                    "context_tokens": str(plan.context_tokens),
                },
            )
        room = plan.context_tokens - prompt
        if not self.ask.max_tokens:
            self._limit = min(self._limit or room, room)
        if self._state == "waiting":
            self._waited_seconds += now - self._waiting_since
        self._state = "running"
        self._runs += 1
        self._epoch = plan.epoch
        self._retry_at = None
        return [
            fx.Run(
                self._runs,
                plan.epoch,
                plan.head_node_id,
                self.ask.prompt_token_ids,
                tuple(self.log.token_ids),
                self._limit,
            )
        ]

    # Runs.

    def _token(self, event: ev.Token, now: float) -> list[fx.Effect]:
        try:
            is_new = self.log.record(event.index, event.token_id, now)
        except TokenError as error:
            return self._fail("INTERNAL", f"the head of plan {self._epoch} told tokens out of order: {error}")
        if not is_new:
            return []
        self._waited_seconds, self._retries = 0.0, 0
        self._lost_epochs.clear()
        deliver = fx.Deliver(event.index, event.token_id, event.logprob, event.finish)
        if event.finish is None:
            return [deliver]
        self._state = "finished"
        return [deliver, fx.Finished(event.finish)]

    def _run_failed(self, event: ev.RunFailed, now: float) -> list[fx.Effect]:
        if event.reason == _CULPRIT:
            self._lost_epochs.add(self._epoch)
        is_busy = event.reason == _BUSY and (self._is_replay or self._runs > 1)
        is_lost = event.reason in LOSSES and len(self._lost_epochs) < self._settings.most_lost_plans
        if not (is_lost or is_busy):
            self._state = "failed"
            return [fx.Failed(event.reason, event.message, event.facts)]
        lost = fx.RunLost(self._runs, self._epoch, event.reason, event.message)
        self._facts = {} if self._lacking else event.facts
        told = self._wait(*(self._lacking or (event.reason, event.message)), now)
        if self._plan is not None:
            # The same plan is asked again soon, and less and less often, until it works or another one comes.
            pause = self._settings.retry_seconds * 2.0**self._retries
            self._retry_at = now + min(pause, self._settings.longest_retry_seconds)
            self._retries += 1
        return [lost, *told]

    def _give_up(self, reason: str, message: str, now: float) -> list[fx.Effect]:
        """End a run whose plan is no more."""
        number, epoch = self._runs, self._epoch
        self._facts = {}
        told = self._wait(reason, message, now)
        return [fx.CancelRun(number), fx.RunLost(number, epoch, reason, message), *told]

    def _wait(self, reason: str, message: str, now: float) -> list[fx.Effect]:
        self._state = "waiting"
        self._missing = (reason, message)
        self._waiting_since = now
        self._gives_up_at = now + max(0.0, self._settings.patience_seconds - self._waited_seconds)
        self._retry_at = None
        return [fx.TellPaused(reason, message)]

    # Ends.

    def _tick(self, now: float) -> list[fx.Effect]:
        if self._state != "waiting":
            return []
        if now >= self._gives_up_at:
            reason, message = self._missing
            return self._fail(
                reason,
                f"the request has waited {self._settings.patience_seconds:g} s for stages to run it: {message}",
                self._facts,
            )
        if self._retry_at is not None and now >= self._retry_at:
            return self._run(now)
        return []

    def _finish_of_log(self) -> Finish | None:
        """Why nothing is left to generate; None where there is."""
        tokens = self.log.token_ids
        if tokens and tokens[-1] in self.ask.stop_token_ids:
            return Finish.STOP
        return Finish.LENGTH if tokens and 0 < self.ask.max_tokens <= len(tokens) else None

    def _fail(self, reason: str, message: str, facts: Mapping[str, str] = {}) -> list[fx.Effect]:
        return self._end("failed", fx.Failed(reason, message, facts))

    def _end(self, state: State, end: fx.End) -> list[fx.Effect]:
        was_running, self._state = self._state == "running", state
        return [fx.CancelRun(self._runs), end] if was_running else [end]
