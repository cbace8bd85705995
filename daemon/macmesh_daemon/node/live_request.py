"""One request between its machine and its client: carries out effects, makes tokens into responses."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import aclosing
from typing import TYPE_CHECKING

from macmesh.reasons import Reason
from macmesh.v1 import inference_pb2, peer_pb2
from macmesh_daemon.logs import get_logger
from macmesh_daemon.node.call_errors import CallError, known_reason
from macmesh_daemon.node.codec import to_proto
from macmesh_daemon.requests import Finish
from macmesh_daemon.requests import effects as fx
from macmesh_daemon.requests import events as ev

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.node.recorder import RequestTrail
    from macmesh_daemon.node.request_intake import Intake
    from macmesh_daemon.requests import RequestMachine

    RunOnHead = Callable[[str, peer_pb2.RunRequestRequest], AsyncGenerator[peer_pb2.RunRequestResponse, None]]

_log = get_logger(part="requests")

#: A client that gets nothing else gets an empty response this often, so that silence means loss.
SIGN_OF_LIFE_SECONDS = 5.0
_FINISH = {
    Finish.STOP: inference_pb2.FINISH_REASON_STOP,
    Finish.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}
_FINISH_BACK = {value: key for key, value in _FINISH.items()}
_GOES_ON = inference_pb2.FINISH_REASON_UNSPECIFIED


class LiveRequest:
    """A request from its acceptance to its end. Every method is for the event loop.

    Args:
        intake: What was asked.
        machine: Its state.
        facts: Told with the first response.
        trail: Its record.
        run_on_head: Runs it at a node and yields tokens; raises CallError.
        clock: Of the node.
        tasks: Of the node; the runs are among them.
    """

    def __init__(
        self,
        intake: Intake,
        machine: RequestMachine,
        *,
        facts: inference_pb2.RequestFacts,
        trail: RequestTrail,
        run_on_head: RunOnHead,
        clock: Clock,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._intake = intake
        self._machine = machine
        self._facts = facts
        self._trail = trail
        self._run_on_head = run_on_head
        self._clock = clock
        self._tasks = tasks
        self._index = intake.next_index
        self._unsent_text = intake.unsent_text
        self._paused: inference_pb2.Paused | None = None
        self._told_facts = self._told_end = self._is_broken = False
        self._outbox: asyncio.Queue[inference_pb2.GenerateResponse | CallError | None] = asyncio.Queue()
        self._following: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        # A run of this request at another API node, or at this one before it started anew, has another name.
        self._nonce = secrets.token_hex(3)

    @property
    def has_tokens(self) -> bool:
        """Whether it has a token already."""
        return bool(self._machine.log.token_ids)

    def answer(self) -> None:
        """Tell the client at once that the request was taken."""
        self._tell(self._response())

    def step(self, event: ev.Event) -> None:
        """Give the machine an event and carry out what it wants."""
        if self._is_broken:
            return
        now = self._clock.now()
        try:
            for effect in self._machine.step(event, now):
                self._carry_out(effect)
            self._arm(now)
        except Exception as error:  # noqa: BLE001  a fault of one request
            # It must neither take the node along, nor leave its client without an end.
            _log.exception("request broke", request=self._machine.ask.request_id)
            self._is_broken = True
            self._leave_run()
            self._trail.failed(Reason.INTERNAL)
            self._outbox.put_nowait(CallError(Reason.INTERNAL, f"the request broke at its node: {error!r}"))

    async def responses(self) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
        """What the client is to be told, until the end.

        Raises:
            CallError: It failed.
        """
        while True:
            item = await self._next()
            if item is None:
                return
            if isinstance(item, CallError):
                raise item
            yield item
            if item.finish_reason:
                return

    async def _next(self) -> inference_pb2.GenerateResponse | CallError | None:
        if not self._outbox.empty():
            return self._outbox.get_nowait()
        try:
            async with asyncio.timeout(SIGN_OF_LIFE_SECONDS):
                return await self._outbox.get()
        except TimeoutError:
            return self._response(paused=self._paused)

    def _carry_out(self, effect: fx.Effect) -> None:  # noqa: C901  one case per effect
        match effect:
            case fx.Run():
                self._run(effect)
            case fx.CancelRun():
                self._leave_run()
            case fx.RunLost():
                _log.info(
                    "run lost",
                    request=self._machine.ask.request_id,
                    run=effect.number,
                    epoch=str(effect.epoch),
                    reason=effect.reason,
                    tokens=len(self._machine.log.token_ids),
                )
                self._trail.run_lost(effect.number, effect.epoch, effect.reason)
            case fx.Deliver():
                self._deliver(effect)
            case fx.TellPaused():
                self._paused = inference_pb2.Paused(reason=effect.reason, message=effect.message)
                self._tell(self._response(paused=self._paused))
            case fx.TellQueued():
                self._tell(
                    self._response(
                        waiting=inference_pb2.Waiting(
                            position=effect.position, estimate_seconds=effect.estimate_seconds
                        )
                    )
                )
            case fx.Finished():
                if not self._told_end:
                    piece = self._intake.assembler.take_end(_FINISH[effect.finish])
                    self._tell_end(self._response(text=piece.text, finish_reason=piece.finish_reason))
            case fx.Cancelled():
                self._trail.cancelled()
                self._outbox.put_nowait(None)
            case fx.Failed():
                self._trail.failed(effect.reason)
                self._outbox.put_nowait(CallError(known_reason(effect.reason), effect.message, effect.facts))

    def _deliver(self, effect: fx.Deliver) -> None:
        finish = _GOES_ON if effect.finish is None else _FINISH[effect.finish]
        piece = self._intake.assembler.take(effect.token_id, effect.logprob, finish)
        self._paused = None
        response = self._response(
            text=piece.text,
            token_ids=piece.token_ids,
            logprobs=piece.logprobs,
            finish_reason=piece.finish_reason,
        )
        # On record before it goes out: afterwards the client may be gone, and this with it.
        self._trail.delivered(effect.index, 1)
        if not piece.finish_reason:
            self._tell(response)
            return
        self._tell_end(response)
        if effect.finish is None:
            self.step(ev.TextStopped())

    def _tell(self, response: inference_pb2.GenerateResponse) -> None:
        self._outbox.put_nowait(response)

    def _tell_end(self, response: inference_pb2.GenerateResponse) -> None:
        self._told_end = True
        log = self._machine.log
        response.usage.CopyFrom(
            inference_pb2.Usage(
                prompt_tokens=len(log.prompt_token_ids),
                completion_tokens=len(log.token_ids),
                first_token_seconds=log.first_token_seconds,
                decode_seconds=log.decode_seconds,
            )
        )
        self._trail.finished(inference_pb2.FinishReason.Name(response.finish_reason))
        self._outbox.put_nowait(response)

    def _response(
        self,
        *,
        text: str = "",
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[float, ...] = (),
        finish_reason: inference_pb2.FinishReason.ValueType = _GOES_ON,
        waiting: inference_pb2.Waiting | None = None,
        paused: inference_pb2.Paused | None = None,
    ) -> inference_pb2.GenerateResponse:
        """The next response; those that are made are told in this order."""
        if self._unsent_text:
            text, self._unsent_text = self._unsent_text + text, ""
        response = inference_pb2.GenerateResponse(
            index=self._index,
            text=text,
            token_ids=token_ids,
            logprobs=logprobs,
            finish_reason=finish_reason,
            request=None if self._told_facts else self._facts,
            waiting=waiting,
            paused=paused,
        )
        self._told_facts = True
        self._index += 1
        return response

    # Runs.

    def _run(self, run: fx.Run) -> None:
        self._paused = None
        if not self._facts.epoch:
            self._facts.epoch = str(run.epoch)
        request = peer_pb2.RunRequestRequest()
        request.CopyFrom(self._intake.template)
        request.epoch.CopyFrom(to_proto(run.epoch))
        request.request_id = f"{self._machine.ask.request_id}/{self._nonce}.{run.number}"
        request.generated_token_ids.extend(run.generated_token_ids)
        request.max_tokens = run.max_tokens
        self._trail.run_asked(
            run.number, run.epoch, head_node_id=run.head_node_id, first=len(run.generated_token_ids)
        )
        self._following = self._tasks.create_task(
            self._follow(run.number, run.head_node_id, request), name=f"run {request.request_id}"
        )

    def _leave_run(self) -> None:
        """Leaving a run is what cancels it at its head."""
        task, self._following = self._following, None
        if task is not None:
            task.cancel()

    async def _follow(self, number: int, head_node_id: str, request: peer_pb2.RunRequestRequest) -> None:
        try:
            async with aclosing(self._run_on_head(head_node_id, request)) as tokens:
                async for token in tokens:
                    self._take(number, token)
                    if self._machine.run != number:
                        return
            failure = CallError(
                Reason.WORKER_FAILED, "the head ended the request without saying why; try again"
            )
        except CallError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  a run must end in an event, whatever ends it
            _log.exception("run broke", request=request.request_id)
            failure = CallError(Reason.INTERNAL, f"this node's part of the request broke: {error!r}")
        self.step(ev.RunFailed(number, failure.reason.value, failure.message, dict(failure.failure.metadata)))

    def _take(self, number: int, token: peer_pb2.RunRequestResponse) -> None:
        if token.HasField("waiting"):
            waiting = token.waiting
            estimate = waiting.estimate_seconds if waiting.HasField("estimate_seconds") else None
            self.step(ev.Queued(number, waiting.position, estimate))
        elif token.has_token:
            finish = _FINISH_BACK.get(token.finish_reason)
            self.step(ev.Token(number, token.index, token.token_id, token.logprob, finish))

    # Time.

    def _arm(self, now: float) -> None:
        deadline = self._machine.next_deadline()
        if deadline == self._deadline:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._deadline, self._timer = deadline, None
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - now), self._due)

    def _due(self) -> None:
        self._deadline = self._timer = None
        self.step(ev.Tick())  # which arms again where the node's own clock says that it is too early
