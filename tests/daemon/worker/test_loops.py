"""The loops of head and followers with a runner that computes nothing."""

import queue
from collections.abc import Callable

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2, types_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.scheduler import Limits, Scheduler
from macmesh_daemon.worker.errors import RemoteNeighbourError
from macmesh_daemon.worker.loops import FollowerLoop, HeadLoop, Item, Outlets

EPOCH = types_pb2.Epoch(generation=1, term=1, seq=1)


class FakeRunner:
    """Samples 40, 41, 42, ... and notes what it was asked."""

    def __init__(self) -> None:
        self.ran: list[tuple[lane_pb2.StepHeader, tuple[int, ...] | None]] = []
        self.released: list[tuple[int, str]] = []

    def run(self, header: lane_pb2.StepHeader, tokens: tuple[int, ...] | None = None) -> lane_pb2.StepResult:
        self.ran.append((header, tokens))
        return lane_pb2.StepResult(
            step=header.step,
            request_id=header.request_id,
            token_id=40 + header.sample_index,
            logprob=-1,
            has_token=header.sample,
        )

    def release(self, slot: int, request_id: str) -> None:
        self.released.append((slot, request_id))

    def memory_bytes(self) -> tuple[int, int]:
        return 10, 20


class Told:
    def __init__(self) -> None:
        self.events: list[lane_pb2.WorkerEvent] = []
        self.headers: list[lane_pb2.StepHeader] = []
        self.releases: list[lane_pb2.ReleaseSlot] = []
        self.results: list[lane_pb2.StepResult] = []
        self.outlets = Outlets(
            event=self.events.append,
            header=self.headers.append,
            release=self.releases.append,
            result=self.results.append,
        )


class Head:
    def __init__(self, *, stages: int = 1, clock: Callable[[], float] = lambda: 0.0) -> None:
        self.runner = FakeRunner()
        self.told = Told()
        limits = Limits(
            context_tokens=50, slots=2, stages=stages, prefill_chunk_tokens=4, step_deadline_seconds=5
        )
        self.loop = HeadLoop(
            self.runner,
            Scheduler(limits),
            self.told.outlets,
            epoch=EPOCH,
            is_tail=stages == 1,
            vocabulary_tokens=100,
            clock=clock,
        )
        self.inbox: queue.SimpleQueue[Item] = queue.SimpleQueue()

    def submit(self, request_id: str, prompt: list[int], **more: object) -> None:
        request = peer_pb2.RunRequestRequest(
            epoch=EPOCH,
            request_id=request_id,
            prompt_token_ids=prompt,
            **{"max_tokens": 2, **more},  # type: ignore[arg-type]
        )
        self.inbox.put(lane_pb2.SubmitRequest(request=request))

    def turns(self, count: int) -> None:
        for _ in range(count):
            self.loop.turn(self.inbox)


def tokens_of(events: list[lane_pb2.WorkerEvent]) -> list[int]:
    return [e.progress.response.token_id for e in events if e.WhichOneof("event") == "progress"]


def test_single_stage_generates_and_frees_its_slot() -> None:
    head = Head()
    head.submit("a", [1, 2, 3, 4, 5, 6])
    head.turns(5)
    assert tokens_of(head.told.events) == [40, 41]
    assert head.told.events[-1].progress.response.finish_reason == inference_pb2.FINISH_REASON_LENGTH
    assert [tokens for _, tokens in head.runner.ran] == [(1, 2, 3, 4), (5,), (6,), (40,)]
    assert head.runner.released == [(0, "a")]
    assert head.told.releases == []


def test_head_of_several_stages_waits_for_the_tail() -> None:
    head = Head(stages=2)
    head.submit("a", [1], max_tokens=1)
    head.turns(1)
    head.inbox.put(lane_pb2.PingWorker(nonce=3))
    head.turns(1)
    assert head.told.events[-1].pong.nonce == 3
    assert head.told.events[-1].pong.steps == 1
    assert tokens_of(head.told.events) == []
    head.inbox.put(lane_pb2.StepResult(step=1, request_id="a", token_id=77, has_token=True))
    head.turns(1)
    assert tokens_of(head.told.events) == [77]
    assert head.told.releases == [lane_pb2.ReleaseSlot(slot=0, request_id="a")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"epoch": types_pb2.Epoch(generation=9)}, "EPOCH_CHANGED"),
        ({"sampling": inference_pb2.SamplingParameters(temperature=1)}, "INVALID_ARGUMENT"),
        ({"prompt_token_ids": [1, 100]}, "INVALID_ARGUMENT"),
        ({"max_tokens": 50}, "CONTEXT_LENGTH_EXCEEDED"),
    ],
)
def test_requests_that_cannot_be_served(change: dict[str, object], reason: str) -> None:
    head = Head()
    request = peer_pb2.RunRequestRequest(
        **{"epoch": EPOCH, "request_id": "a", "prompt_token_ids": [1], "max_tokens": 1, **change}  # type: ignore[arg-type]
    )
    head.inbox.put(lane_pb2.SubmitRequest(request=request))
    head.turns(1)
    (event,) = head.told.events
    assert (event.failed.request_id, event.failed.reason) == ("a", reason)
    assert head.runner.ran == []


def test_cancel_ends_a_request_between_two_steps() -> None:
    head = Head()
    head.submit("a", [1], max_tokens=40)
    head.turns(3)
    head.inbox.put(lane_pb2.CancelRequest(request_id="a"))
    head.turns(1)
    steps = len(head.runner.ran)
    last = head.told.events[-1].progress.response
    assert (last.finish_reason, last.has_token) == (inference_pb2.FINISH_REASON_CANCELLED, False)
    head.inbox.put(lane_pb2.PingWorker(nonce=1))
    head.turns(1)
    assert len(head.runner.ran) == steps
    assert head.runner.released == [(0, "a")]


def test_overdue_result_ends_the_loop() -> None:
    now = [0.0]
    head = Head(stages=2, clock=lambda: now[0])
    head.submit("a", [1])
    head.turns(1)
    head.inbox.put(lane_pb2.PingWorker(nonce=1))
    head.turns(1)
    now[0] = 5.0
    with pytest.raises(RemoteNeighbourError, match="step 1 is overdue"):
        head.turns(1)


def test_results_that_nobody_waits_for_end_the_loop() -> None:
    head = Head(stages=2)
    head.inbox.put(lane_pb2.StepResult(step=5))
    with pytest.raises(RemoteScheduleError, match="disagree"):
        head.turns(1)
    head.inbox.put(lane_pb2.StepHeader(step=5))
    with pytest.raises(RemoteScheduleError, match="gives them out"):
        head.turns(1)


def test_followers_do_what_comes() -> None:
    runner, told = FakeRunner(), Told()
    middle = FollowerLoop(runner, told.outlets, is_tail=False)
    middle.take(lane_pb2.StepHeader(step=1, request_id="a"))
    middle.take(lane_pb2.ReleaseSlot(slot=1, request_id="a"))
    middle.take(lane_pb2.PingWorker(nonce=8))
    middle.take(lane_pb2.CancelRequest(request_id="a"))
    assert told.results == []
    assert told.releases == [lane_pb2.ReleaseSlot(slot=1, request_id="a")]
    assert runner.released == [(1, "a")]
    assert (told.events[0].pong.nonce, told.events[0].pong.steps) == (8, 1)
    middle.take(lane_pb2.SubmitRequest(request=peer_pb2.RunRequestRequest(request_id="b")))
    assert told.events[-1].failed.reason == "EPOCH_CHANGED"
    with pytest.raises(RemoteScheduleError, match="not the head"):
        middle.take(lane_pb2.StepResult(step=1))

    tail = FollowerLoop(runner, told.outlets, is_tail=True)
    tail.take(lane_pb2.StepHeader(step=1, request_id="a", sample=True))
    tail.take(lane_pb2.ReleaseSlot(slot=1, request_id="a"))
    assert [result.token_id for result in told.results] == [40]
    assert len(told.releases) == 1
