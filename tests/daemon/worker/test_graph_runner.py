"""Steps whose transfers are part of their graphs, queued one ahead."""

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.engine.steps import Compose, Open, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.convert_steps import done_from_wire
from macmesh_daemon.worker.graph_runner import (
    GraphFollowerRunner,
    GraphHeadRunner,
    pack,
    sampled_facts,
    sampled_in,
)
from macmesh_rdma.errors import RemotePeerLostError, RemoteTimeoutError
from support.fifo_schedule import FifoScheduler
from support.stage_threads import DEADLINE_SECONDS, EPOCH, Plan, turn_until
from tinymodels import write_tiny_model

PROMPT = [(5 * i * i + 11) % 300 + 4 for i in range(40)]
CHUNK = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: write_tiny_model(folder / name, name) for name in ("llama", "rwkv7")}


@functools.cache
def expected(folder: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    model, _ = load_model(folder)
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=CHUNK)
    return [int(token) for token, _ in steps]


def submit(name: str, prompt: list[int], count: int, **more: object) -> lane_pb2.SubmitRequest:
    return lane_pb2.SubmitRequest(
        request=peer_pb2.RunRequestRequest(
            epoch=EPOCH,
            request_id=name,
            prompt_token_ids=prompt,
            max_tokens=count,
            **more,  # type: ignore[arg-type]
        )
    )


def tokens_of(plan: Plan, name: str) -> list[int]:
    return [
        event.progress.response.token_id
        for event in plan.events
        if event.progress.request_id == name and event.progress.response.has_token
    ]


def ended(plan: Plan) -> int:
    return sum(
        bool(event.progress.response.finish_reason)
        for event in plan.events
        if event.WhichOneof("event") == "progress"
    )


def test_what_the_tail_sends_keeps_ids_and_logarithms() -> None:
    ids, logprobs = mx.array([7, 4_000_000_000], mx.uint32), mx.array([-0.125, -1e-30], mx.float32)
    packed = pack(ids, logprobs)
    assert (packed.shape, packed.dtype) == sampled_facts(2)
    told = sampled_in(packed)
    assert [one.token for one in told] == [7, 4_000_000_000]
    assert [one.logprob for one in told] == logprobs.tolist()


def test_an_architecture_that_carries_more_than_the_hidden_state(folders: dict[str, Path]) -> None:
    plan = Plan(folders["rwkv7"], [1, 3], kind="graph")
    with plan.followers():
        loop, inbox = plan.head_loop(FifoScheduler(chunk_tokens=CHUNK, lookahead=1))
        inbox.put(submit("a", PROMPT[:13], 8))
        turn_until(loop, inbox, lambda: ended(plan) == 1)
    assert plan.failures == []
    assert tokens_of(plan, "a") == expected(folders["rwkv7"], tuple(PROMPT[:13]), 8)
    middle = plan.runners[1]
    assert isinstance(middle, GraphFollowerRunner)
    assert len(middle.stage.payload_facts(1, 1) or ()) > 1


def test_prompts_and_groups_in_flight_with_rows_that_join_and_leave(
    folders: dict[str, Path],
) -> None:
    folder = folders["llama"]
    plan = Plan(folder, [1, 2], kind="graph", slots=8)
    limits = Limits(
        context_tokens=96,
        slots=6,
        stages=3,
        prefill_chunk_tokens=CHUNK,
        lookahead=1,
        slots_at_once=6,
        batch_rows=2,
        prefill_least_tokens=4,
    )
    # Long enough to be under way still when all prompts, cut as small as can be, have been read between their steps.
    wanted = {"a": (PROMPT[:23], 45), "b": (PROMPT[3:12], 30), "c": (PROMPT[5:10], 45), "d": (PROMPT, 20)}
    later = {"e": (PROMPT[1:30], 20), "f": (PROMPT[2:5], 20)}
    with plan.followers():
        loop, inbox = plan.head_loop(Scheduler(limits))
        for name, (prompt, count) in wanted.items():
            inbox.put(submit(name, prompt, count))
        turn_until(loop, inbox, lambda: len(tokens_of(plan, "a")) >= 2)
        for name, (prompt, count) in later.items():
            inbox.put(submit(name, prompt, count))
        seeded = inference_pb2.SamplingParameters(temperature=1.0, top_p=0.9, seed=4)
        inbox.put(submit("seeded", PROMPT[:9], 6, sampling=seeded))
        turn_until(loop, inbox, lambda: ended(plan) == 7)
    assert plan.failures == []
    for name, (prompt, count) in {**wanted, **later}.items():
        assert tokens_of(plan, name) == expected(folder, tuple(prompt), count), name
    assert len(tokens_of(plan, "seeded")) == 6
    decodes = [step for step in plan.given if step.kind == "decode"]
    assert any(len(step.rows) > 1 for step in decodes)
    assert any(isinstance(one, Compose) for step in plan.given for one in step.operations)
    kinds = [step.kind for step in plan.given]
    assert kinds.index("decode") < len(kinds) - 1 - kinds[::-1].index("prefill")


def test_a_request_that_stops_early_wastes_one_step_and_a_cancelled_one_ends(
    folders: dict[str, Path],
) -> None:
    folder = folders["llama"]
    told = expected(folder, tuple(PROMPT[:9]), 8)
    stop = next(token for index, token in enumerate(told) if index > 1 and token not in told[:index])
    plan = Plan(folder, [2], kind="graph")
    with plan.followers():
        loop, inbox = plan.head_loop(FifoScheduler(chunk_tokens=CHUNK, lookahead=1))
        inbox.put(submit("stops", PROMPT[:9], 30, stop_token_ids=[stop]))
        inbox.put(submit("cancelled", PROMPT[:5], 50))
        turn_until(loop, inbox, lambda: len(tokens_of(plan, "cancelled")) >= 3)
        inbox.put(lane_pb2.CancelRequest(request_id="cancelled"))
        inbox.put(submit("after", PROMPT[4:9], 5))
        turn_until(loop, inbox, lambda: len(tokens_of(plan, "after")) == 5)
    assert plan.failures == []
    assert tokens_of(plan, "stops") == told[: told.index(stop) + 1]
    assert tokens_of(plan, "after") == expected(folder, tuple(PROMPT[4:9]), 5)


class Ahead:
    """A head whose follower learns of steps only when the test says so."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        head = plan.runner(0)
        assert isinstance(head, GraphHeadRunner)
        self.head = head
        opened = (Open(0, "a", 40, Sampling()), Open(1, "b", 40, Sampling()))
        rows = (Row(0, "a", 0),)
        self.steps = {
            1: Step(1, "prefill", opened, rows, tuple(PROMPT[:4])),
            2: Step(2, "decode", (), (Row(0, "a", 4, PROMPT[4]),)),
            3: Step(3, "prefill", (), (Row(1, "b", 0),), tuple(PROMPT[:8])),
            4: Step(4, "decode", (), (Row(0, "a", 5, None, 1),)),
            5: Step(5, "decode", (), (Row(0, "a", 6, None, 2),)),
        }

    def give(self, *numbers: int) -> None:
        for number in numbers:
            self.plan.give(self.steps[number])

    def begin(self, *numbers: int) -> None:
        for number in numbers:
            self.head.begin(self.steps[number])

    def come(self) -> StepDone:
        item = self.plan.inboxes[0].get(timeout=120)
        assert isinstance(item, lane_pb2.StepDone), item
        return done_from_wire(item)


@pytest.fixture
def ahead(folders: dict[str, Path]) -> Iterator[Ahead]:
    plan = Plan(folders["llama"], [2], kind="graph")
    with plan.followers():
        yield Ahead(plan)
    assert plan.failures == []


def test_no_step_waits_on_the_device_for_a_prompt(ahead: Ahead) -> None:
    head = ahead.head
    ahead.give(1, 2)
    ahead.begin(1, 2)
    assert head.unfinished == 0, "the first step samples nothing, and its end has not come"
    assert head.take_result(ahead.come())
    assert head.finish().number == 1
    # The other stage does not do step 3 yet; what the step before it sampled comes all the same.
    ahead.begin(3)
    assert not head.holds_back(ahead.steps[4])
    ahead.begin(4)
    assert head.holds_back(ahead.steps[5]), "what it begins with is sampled after the prompt"
    assert head.finish().number == 2
    assert head.unfinished == 0
    ahead.give(3, 4)
    assert head.take_result(ahead.come())
    assert not head.holds_back(ahead.steps[5])
    ahead.give(5)
    ahead.begin(5)
    ends = [head.finish() for _ in range(3)]
    assert [done.number for done in ends] == [3, 4, 5]
    with pytest.raises(LookupError):
        head.finish()
    told = [one.token for done in ends for one in done.sampled]
    assert told == expected(ahead.plan.folder, tuple(PROMPT[:5]), 3)[1:]


def test_results_that_nobody_waits_for_are_refused(ahead: Ahead) -> None:
    ahead.give(1)
    ahead.begin(1)
    done = ahead.come()
    for wrong in (StepDone(2), StepDone(1, (Sampled(1, -1.0),))):
        with pytest.raises(RemoteScheduleError, match="nobody waits for"):
            ahead.head.take_result(wrong)
    assert ahead.head.take_result(done)
    with pytest.raises(RemoteScheduleError, match="which was nothing"):
        ahead.head.begin(Step(2, "decode", (), (Row(0, "a", 4),)))


def test_a_stage_that_is_lost_ends_what_is_queued(folders: dict[str, Path]) -> None:
    plan = Plan(folders["llama"], [2], kind="group")
    with plan.followers():
        ahead = Ahead(plan)
        ahead.give(1)
        ahead.begin(1)
        ahead.head.take_result(ahead.come())
        ahead.head.finish()
        ahead.begin(2)
        plan.ended.set()
        began = time.monotonic()
        plan.groups[1].abort("it has had enough")
        with pytest.raises(RemotePeerLostError, match="had enough") as raised:
            ahead.head.finish()
        assert raised.value.peer == 1
        with pytest.raises(RemotePeerLostError):
            ahead.head.finish()
        assert time.monotonic() - began < DEADLINE_SECONDS / 2


def test_a_silent_stage_is_an_error_at_the_deadline(folders: dict[str, Path]) -> None:
    plan = Plan(folders["llama"], [2], kind="group")
    with plan.followers():
        ahead = Ahead(plan)
        ahead.give(1)
        ahead.begin(1)
        ahead.head.take_result(ahead.come())
        ahead.head.finish()
        plan.groups[0].receive_timeout_seconds = 0.2
        ahead.begin(2)  # and nobody else learns of it
        plan.ended.set()
        began = time.monotonic()
        with pytest.raises(RemoteTimeoutError):
            ahead.head.finish()
        assert 0.1 < time.monotonic() - began < DEADLINE_SECONDS / 2
