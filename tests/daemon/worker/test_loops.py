"""The loops of head and followers with a runner that computes nothing."""

import collections
import queue
import threading
from collections.abc import Callable, Sequence

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.steps import Close, Open, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.convert_steps import done_to_wire, step_to_wire
from macmesh_daemon.worker.errors import RemoteNeighbourError
from macmesh_daemon.worker.loops import STEPS_QUEUED, FollowerLoop, HeadLoop, Item, Outlets, Wake, pong
from macmesh_daemon.worker.pings import Pings
from macmesh_daemon.worker.step_times import StepTimes
from macmesh_rdma.errors import RemotePeerLostError
from support.fifo_schedule import FifoScheduler

EPOCH = types_pb2.Epoch(generation=1, term=1, seq=1)


def result_of(step: Step) -> StepDone:
    """Samples 40, 41, 42, ..."""
    return StepDone(
        step.number, tuple(Sampled(40 + row.sample_index, -1.0) for row in step.rows if step.kind == "decode")
    )


class Idle(Exception):  # noqa: N818  no error
    """There is nothing to do but to wait."""


class FakeRunner:
    """Notes what it was asked; alone it has results, as the head of several stages it has none."""

    def __init__(self, *, alone: bool = True, log: list[str] | None = None) -> None:
        self.times = StepTimes()
        self.steps = 0
        self.prompt_ahead: Callable[[], int | None] = lambda: None
        self.failed: Callable[[Exception], None] = lambda _error: None
        self.began: list[Step] = []
        self.taken: list[StepDone] = []
        self.prepared = 0
        self.held: set[int] = set()
        self.log = log if log is not None else []
        self._alone = alone
        self._queued: collections.deque[Step] = collections.deque()

    @property
    def unfinished(self) -> int:
        return len(self._queued)

    def begin(self, step: Step) -> None:
        self.began.append(step)
        self.log.append(f"begin {step.kind} {step.number}")
        self.steps = step.number
        if self._alone:
            self._queued.append(step)

    def finish(self) -> StepDone:
        step = self._queued.popleft()
        self.log.append(f"finish {step.number}")
        return result_of(step)

    def take_result(self, done: StepDone) -> bool:
        self.taken.append(done)
        return False

    def holds_back(self, step: Step) -> bool:
        return step.number in self.held

    def prepare(self) -> bool:
        self.prepared += 1
        if self.prepared % 2 == 0:
            raise Idle
        return True

    def memory_bytes(self) -> tuple[int, int]:
        return 10, 20


class Told:
    def __init__(self, log: list[str] | None = None) -> None:
        self.events: list[lane_pb2.WorkerEvent] = []
        self.steps: list[lane_pb2.Step] = []
        self.log = log if log is not None else []
        self.outlets = Outlets(
            events=self._tell,
            step=self.steps.append,
            payload=lambda _: None,
            result=lambda _: None,
        )

    def _tell(self, events: Sequence[lane_pb2.WorkerEvent]) -> None:
        self.log.append(f"tell {len(events)}")
        self.events.extend(events)


class Head:
    def __init__(
        self, *, alone: bool = True, lookahead: int = 0, clock: Callable[[], float] = lambda: 0.0
    ) -> None:
        self.log: list[str] = []
        self.runner = FakeRunner(alone=alone, log=self.log)
        self.told = Told(self.log)
        self.inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.pings = Pings(
            lambda ping: self.told.events.append(pong(ping, self.runner)), lambda: self.inbox.put(Wake())
        )
        self.loop = HeadLoop(
            self.runner,
            FifoScheduler(chunk_tokens=4, lookahead=lookahead, deadline_seconds=5),
            self.told.outlets,
            self.pings,
            epoch=EPOCH,
            is_tail=alone,
            vocabulary_tokens=100,
            clock=clock,
        )

    def submit(self, request_id: str, prompt: list[int], **more: object) -> None:
        request = peer_pb2.RunRequestRequest(
            epoch=EPOCH,
            request_id=request_id,
            prompt_token_ids=prompt,
            **{"max_tokens": 2, **more},  # type: ignore[arg-type]
        )
        self.inbox.put(lane_pb2.SubmitRequest(request=request))

    def settle(self) -> None:
        """Turns until there is nothing to do but to wait; then something came."""
        with pytest.raises(Idle):
            self.loop.run(self.inbox)


def tokens_of(events: list[lane_pb2.WorkerEvent]) -> list[int]:
    return [
        e.progress.response.token_id
        for e in events
        if e.WhichOneof("event") == "progress" and e.progress.response.has_token
    ]


def test_single_stage_generates_and_closes_its_slot() -> None:
    head = Head()
    head.submit("a", [1, 2, 3, 4, 5, 6])
    head.settle()
    assert tokens_of(head.told.events) == [40, 41]
    assert head.told.events[-1].progress.response.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert [step.tokens for step in head.runner.began] == [(1, 2, 3, 4), (5,), (), (), ()]
    assert [step.kind for step in head.runner.began[2:]] == ["decode", "decode", "operations"]
    assert head.runner.began[-1].operations == (Close(0, "a"),)
    assert isinstance(head.runner.began[0].operations[0], Open)
    assert head.told.steps == []


def test_the_next_step_is_queued_before_a_token_is_read_and_told() -> None:
    head = Head(lookahead=1)
    head.submit("a", [1], max_tokens=4)
    head.settle()
    decodes = [line for line in head.log if "finish" in line or "tell" in line or "begin" in line]
    assert decodes[:8] == [
        "begin decode 1",
        "begin decode 2",
        "finish 1",
        "begin decode 3",
        "tell 1",
        "finish 2",
        "begin decode 4",
        "tell 1",
    ]


def test_what_is_known_is_told_before_a_part_of_a_prompt_runs() -> None:
    head = Head(lookahead=1)
    head.submit("a", [1], max_tokens=1)
    head.submit("b", [1, 2, 3, 4, 5, 6, 7, 8], max_tokens=1)
    head.settle()
    told = head.log.index("tell 1")
    assert head.log.index("finish 1") < told < head.log.index("begin prefill 2")


def test_head_of_several_stages_takes_results_and_works_ahead_while_it_waits() -> None:
    head = Head(alone=False)
    head.submit("a", [1], max_tokens=1)
    head.settle()
    assert [step.number for step in head.told.steps] == [1]
    assert head.runner.prepared == 2
    head.pings.ask(lane_pb2.PingWorker(nonce=3))
    head.settle()
    assert [event.pong.nonce for event in head.told.events] == [3]
    assert head.told.events[0].pong.steps == 1
    assert head.told.events[0].pong.times.idle.count > 0
    head.inbox.put(lane_pb2.StepDone(number=1, sampled=[lane_pb2.SampledToken(token=77, logprob=-1)]))
    head.settle()
    assert head.runner.taken == [StepDone(1, (Sampled(77, -1.0),))]
    assert tokens_of(head.told.events) == [77]
    assert [len(step.operations) for step in head.told.steps] == [1, 1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": types_pb2.Epoch(generation=9)}, "EPOCH_CHANGED"),
        ({"sampling": inference_pb2.SamplingParameters(temperature=1)}, "INVALID_ARGUMENT"),
        ({"prompt_token_ids": [1, 100]}, "INVALID_ARGUMENT"),
    ],
)
def test_requests_that_cannot_be_served(change: dict[str, object], reason: str) -> None:
    head = Head()
    request = peer_pb2.RunRequestRequest(
        **{"epoch": EPOCH, "request_id": "a", "prompt_token_ids": [1], "max_tokens": 1, **change}  # type: ignore[arg-type]
    )
    head.inbox.put(lane_pb2.SubmitRequest(request=request))
    head.settle()
    (event,) = head.told.events
    assert (event.failed.request_id, event.failed.reason) == ("a", reason)
    assert head.runner.began == []


def test_cancel_ends_a_request_between_two_steps() -> None:
    head = Head(alone=False)
    head.submit("a", [1], max_tokens=40)
    head.settle()
    head.inbox.put(lane_pb2.CancelRequest(request_id="a"))
    head.settle()
    assert [step.kind for step in head.runner.began] == ["decode", "operations"]
    last = head.told.events[-1].progress.response
    assert (last.finish_reason, last.has_token) == (inference_pb2.FINISH_REASON_CANCELLED, False)
    for step in head.runner.began:
        head.inbox.put(done_to_wire(result_of(step)))
    head.settle()
    assert len(head.runner.began) == 2
    assert tokens_of(head.told.events) == []


def test_overdue_result_ends_the_loop() -> None:
    now = [0.0]
    head = Head(alone=False, clock=lambda: now[0])
    head.submit("a", [1])
    head.settle()
    now[0] = 5.0
    head.inbox.put(Wake())
    with pytest.raises(RemoteNeighbourError, match="step 1 is overdue"):
        head.loop.run(head.inbox)


@pytest.mark.parametrize(
    ("item", "error", "reason"),
    [
        (lane_pb2.StepDone(number=5), RemoteScheduleError, "disagree"),
        (lane_pb2.Step(number=5), RemoteScheduleError, "gives them out"),
        (RemotePeerLostError("rank 1 has gone"), RemotePeerLostError, "has gone"),
    ],
    ids=["result", "step", "loss"],
)
def test_what_should_not_come_ends_the_loop(item: Item, error: type[Exception], reason: str) -> None:
    head = Head(alone=False)
    head.inbox.put(item)
    with pytest.raises(error, match=reason):
        head.loop.run(head.inbox)


def test_followers_do_what_comes() -> None:
    runner, told = FakeRunner(alone=False), Told()
    pings = Pings(lambda ping: told.events.append(pong(ping, runner)), lambda: None)
    follower = FollowerLoop(runner, told.outlets, pings)
    step = Step(1, "operations", (Close(1, "a"),))
    pings.ask(lane_pb2.PingWorker(nonce=8))
    assert told.events == []
    follower.take(step_to_wire(step))
    follower.take(lane_pb2.CancelRequest(request_id="a"))
    follower.take(Wake())
    assert runner.began == [step]
    assert (told.events[0].pong.nonce, told.events[0].pong.steps) == (8, 1)
    follower.take(lane_pb2.SubmitRequest(request=peer_pb2.RunRequestRequest(request_id="b")))
    assert told.events[-1].failed.reason == "EPOCH_CHANGED"
    with pytest.raises(RemoteScheduleError, match="not the head"):
        follower.take(done_to_wire(StepDone(1)))
    with pytest.raises(RemotePeerLostError):
        follower.take(RemotePeerLostError("gone"))


def test_followers_see_a_part_of_a_prompt_ahead_and_keep_the_order() -> None:
    row = (Row(0, "a", 0),)
    prompt = (1, 2)
    steps = [
        Step(1, "prefill", (), row, prompt),
        Step(2, "operations", (Close(1, "b"),)),
        Step(3, "prefill", (), row, prompt),
        Step(4, "decode", (), row),
        Step(5, "prefill", (), row, prompt),
    ]
    inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
    seen: list[int | None] = []

    class Runner(FakeRunner):
        def begin(self, step: Step) -> None:
            super().begin(step)
            seen.append(self.prompt_ahead())
            if step.number == 5:
                self.failed(RemotePeerLostError("a send beside failed"))  # while the loop waits for work

    runner = Runner(alone=False)
    for step in steps:
        inbox.put(step_to_wire(step))
        inbox.put(Wake())
    with pytest.raises(RemotePeerLostError, match="beside"):
        FollowerLoop(runner, Told().outlets, Pings(lambda _: None, lambda: None)).run(inbox)
    assert runner.began == steps
    assert seen == [3, 3, None, 5, None]  # operations carry nothing; after step 3 a decode step comes


def test_a_stage_that_waits_for_another_one_answers_pings() -> None:
    answered: list[int] = []
    woken: list[None] = []
    pings = Pings(lambda ping: answered.append(ping.nonce), lambda: woken.append(None))
    pings.ask(lane_pb2.PingWorker(nonce=1))
    assert (answered, len(woken)) == ([], 1)
    entered, leave = threading.Event(), threading.Event()

    def wait() -> None:
        with pings.waiting():
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=wait)
    thread.start()
    assert entered.wait(60)
    assert answered == [1]
    pings.ask(lane_pb2.PingWorker(nonce=2))
    assert (answered, len(woken)) == ([1, 2], 1)
    leave.set()
    thread.join(60)
    pings.ask(lane_pb2.PingWorker(nonce=3))
    assert (answered, len(woken)) == ([1, 2], 2)
    pings.answer_all()
    assert answered == [1, 2, 3]


def test_times_add_up() -> None:
    times = StepTimes()
    for phase in (times.describe, times.wait, times.describe):
        times.lap(phase)
    wire = times.to_wire()
    assert (wire.describe.count, wire.wait.count, wire.send.count) == (2, 1, 0)
    assert wire.describe.seconds == times.describe.seconds > 0


def test_a_step_that_is_held_back_is_told_to_nobody_until_another_has_ended() -> None:
    head = Head(alone=False, lookahead=1)
    head.submit("a", [1, 2], max_tokens=3)
    head.runner.held = {2}
    released: list[int] = []

    def release() -> bool:
        released.append(len(head.told.steps))
        head.runner.held.clear()
        head.inbox.put(done_to_wire(StepDone(1)))
        return True

    head.runner.prepare = release  # type: ignore[method-assign]
    head.loop.turn(head.inbox)  # takes the request
    head.loop.turn(head.inbox)
    assert released == [1], "the first step had been told, the one that was held back had not"
    assert [step.number for step in head.told.steps] == [1, 2]
    assert [done.number for done in head.runner.taken] == [1]


def test_a_follower_has_few_steps_on_its_device_and_sees_them_through_when_idle() -> None:
    runner = FakeRunner()
    told = Told()
    inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()
    loop = FollowerLoop(runner, told.outlets, Pings(lambda _: None, lambda: None))
    for number in range(1, 6):
        loop.take(step_to_wire(Step(number, "operations")))
        assert runner.unfinished == min(number, STEPS_QUEUED)
    assert [line for line in runner.log if "finish" in line] == ["finish 1", "finish 2", "finish 3"]

    class Over(Exception):  # noqa: N818  no error
        pass

    def finish() -> StepDone:
        if runner.unfinished == 1:
            inbox.put(Over())
        return FakeRunner.finish(runner)

    runner.finish = finish  # type: ignore[method-assign]
    with pytest.raises(Over):
        loop.run(inbox)
    assert runner.unfinished == 0
