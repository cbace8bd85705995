"""Stages of a tiny model at work: alone, and as threads of one process."""

import functools
import threading
from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
import pytest
from mlx_lm.generate import generate_step
from mlx_lm.utils import load_model

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.engine.errors import RemoteScheduleError
from macmesh_daemon.engine.sampling_parameters import Sampling
from macmesh_daemon.engine.steps import Close, Compose, Open, Row, Sampled, Step, StepDone
from macmesh_daemon.worker.graph_runner import GraphHeadRunner
from macmesh_daemon.worker.local_runner import LocalRunner
from macmesh_daemon.worker.piped_runner import HeadRunner
from macmesh_daemon.worker.runner import StageRunner
from support.fifo_schedule import FifoScheduler
from support.stage_threads import EPOCH, Plan, turn_until
from tinymodels import write_tiny_model

PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(20)]
CHUNK = 8
PLANS = [("host", []), ("host", [2]), ("host", [1, 3]), ("lane", [2]), ("lane", [1, 2])]
GRAPHS = [("graph", [1, 3])]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "qwen3")


@functools.cache
def expected(folder: Path, prompt: tuple[int, ...], count: int) -> list[int]:
    model, _ = load_model(folder)
    steps = generate_step(mx.array(prompt), model, max_tokens=count, prefill_step_size=CHUNK)
    return [int(token) for token, _ in steps]


def submit(name: str, prompt: Sequence[int], count: int, **more: object) -> lane_pb2.SubmitRequest:
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


def ends_of(plan: Plan) -> list[str]:
    return [
        event.progress.request_id
        for event in plan.events
        if event.WhichOneof("event") == "progress" and event.progress.response.finish_reason
    ]


def has_ended(plan: Plan, count: int) -> bool:
    return len(ends_of(plan)) == count


@pytest.mark.parametrize(("kind", "cuts"), PLANS + GRAPHS, ids=str)
def test_every_plan_gives_the_tokens_of_mlx_lm(folder: Path, kind: str, cuts: list[int]) -> None:
    plan = Plan(folder, cuts, kind=kind)
    others = [5, 6, 7]
    with plan.followers():
        loop, inbox = plan.head_loop(FifoScheduler(chunk_tokens=CHUNK, lookahead=plan.steps_ahead))
        inbox.put(submit("a", PROMPT, 12))
        inbox.put(submit("b", others, 9))
        turn_until(loop, inbox, lambda: len(ends_of(plan)) == 2)
    assert plan.failures == []
    assert tokens_of(plan, "a") == expected(folder, tuple(PROMPT), 12)
    assert tokens_of(plan, "b") == expected(folder, tuple(others), 9)
    times = plan.runners[0].times  # type: ignore[union-attr]
    if cuts and not plan.steps_ahead:
        # All but the first token of a request can be described ahead; the last description was in vain.
        assert times.ahead_used == 11 + 8
        for runner in plan.runners[1:]:
            assert runner is not None
            assert runner.times.receive.count > 20
    else:
        assert times.encode.count >= 21


def test_parts_of_a_prompt_cross_while_others_are_computed(folder: Path) -> None:
    plan = Plan(folder, [1, 2])
    log: list[tuple[str, int, str]] = []
    for rank, host in enumerate(plan.hosts):
        for name in ("send", "receive", "receive_into"):
            note(log, rank, name, host)
    prompt = PROMPT * 3
    with plan.followers():
        loop, inbox = plan.head_loop(FifoScheduler(chunk_tokens=CHUNK, lookahead=0))
        inbox.put(submit("a", prompt, 3))
        turn_until(loop, inbox, lambda: len(ends_of(plan)) == 1)
    assert plan.failures == []
    assert tokens_of(plan, "a") == expected(folder, tuple(prompt), 3)
    chunks = -(-(len(prompt) - 1) // CHUNK)
    for rank in (0, 1):
        sends = [thread for name, at, thread in log if (name, at) == ("send", rank)]
        assert sends[:chunks] == ["sender"] * chunks
        assert "sender" not in sends[chunks:]
    for rank in (1, 2):
        threads = [thread for name, at, thread in log if (name, at) == ("receive", rank)]
        assert threads[0] != "receiver"  # nothing ran before it
        assert len(threads) == chunks
        assert "receive_into" in {name for name, at, _ in log if at == rank}


def note(log: list[tuple[str, int, str]], rank: int, name: str, host: object) -> None:
    """Lets a lane's calls be written down, with the thread that makes them."""
    original = getattr(host, name)

    def call(*given: object) -> object:
        log.append((name, rank, threading.current_thread().name))
        return original(*given)

    setattr(host, name, call)


def test_the_next_part_is_taken_in_while_one_is_computed(folder: Path) -> None:
    plan = Plan(folder, [2])
    log: list[tuple[str, int, str]] = []
    note(log, 1, "receive", plan.hosts[1])
    head, tail = plan.runner(0), plan.runner(1)
    ahead = iter([2, None, None])
    tail.prompt_ahead = lambda: next(ahead)
    opened = (Open(0, "a", 20, Sampling()),)
    steps = [
        Step(1, "prefill", opened, (Row(0, "a", 0),), tuple(PROMPT[:4])),
        Step(2, "prefill", (), (Row(0, "a", 4),), tuple(PROMPT[4:7])),
        Step(3, "decode", (), (Row(0, "a", 7, PROMPT[7]),)),
    ]
    for step in steps:
        head.begin(step)
    for step in steps:
        tail.begin(step)
    assert [thread == "receiver" for _, _, thread in log] == [False, True]
    done = [lane_pb2.StepDone.FromString(plan.hosts[0].receive_message(1, 5)) for _ in steps]
    assert done[-1].sampled[0].token == expected(folder, tuple(PROMPT[:8]), 1)[0]


def test_samples_are_the_same_on_every_plan(folder: Path) -> None:
    told = []
    for kind, cuts in [*PLANS[:3], *GRAPHS]:
        plan = Plan(folder, cuts, kind=kind)
        with plan.followers():
            loop, inbox = plan.head_loop(FifoScheduler(chunk_tokens=CHUNK, lookahead=plan.steps_ahead))
            for seed in (4, 5):
                sampling = inference_pb2.SamplingParameters(temperature=1.0, top_p=0.9, seed=seed)
                inbox.put(submit(f"seed {seed}", PROMPT, 10, sampling=sampling))
            turn_until(loop, inbox, functools.partial(has_ended, plan, 2))
        told.append([tokens_of(plan, f"seed {seed}") for seed in (4, 5)])
    assert told[0] == told[1] == told[2] == told[3]
    assert told[0][0] != told[0][1]
    assert all(len(tokens) == 10 for tokens in told[0])


def test_cancel_takes_effect_at_the_next_step(folder: Path) -> None:
    plan = Plan(folder, [2])
    with plan.followers():
        loop, inbox = plan.head_loop(FifoScheduler(chunk_tokens=CHUNK, lookahead=0))
        inbox.put(submit("a", PROMPT, 100))
        turn_until(loop, inbox, lambda: len(tokens_of(plan, "a")) >= 3)
        inbox.put(lane_pb2.CancelRequest(request_id="a"))
        inbox.put(submit("b", [5, 6, 7], 4))
        turn_until(loop, inbox, lambda: "b" in ends_of(plan))
    assert plan.failures == []
    assert ends_of(plan) == ["a", "b"]
    assert len(tokens_of(plan, "a")) <= 5
    assert tokens_of(plan, "b") == expected(folder, (5, 6, 7), 9)[:4]
    closes = [step.kind for step in plan.given if any(isinstance(one, Close) for one in step.operations)]
    assert closes  # the slot was given up with the step that followed


def scripted(lengths: Sequence[int], decodes: int) -> list[Step]:
    """Requests that are filled alone, then decode as rows of a batch; the second leaves half-way."""
    steps: list[Step] = []

    def add(kind: str, **more: object) -> None:
        steps.append(Step(len(steps) + 1, kind, **more))  # type: ignore[arg-type]

    for slot, length in enumerate(lengths):
        opened = Open(slot, f"r{slot}", length + decodes, Sampling())
        body = tuple(PROMPT[: length - 1])
        add("prefill", operations=(opened,), rows=(Row(slot, f"r{slot}", 0),), tokens=body)
    slots = list(range(len(lengths)))
    for index in range(decodes):
        operations: tuple[Close | Compose, ...] = ()
        if index == 0:
            operations = (Compose(7, tuple(slots), max(lengths) + decodes),)
        elif index == decodes // 2:
            slots.remove(1)
            operations = (Close(1, "r1"), Compose(7, tuple(slots), max(lengths) + decodes))
        rows = tuple(
            Row(
                slot,
                f"r{slot}",
                lengths[slot] - 1 + index,
                PROMPT[lengths[slot] - 1] if index == 0 else None,
                index,
            )
            for slot in slots
        )
        add("decode", operations=operations, rows=rows, batch=7)
    return steps


def run_alone(head: StageRunner, steps: Sequence[Step]) -> list[tuple[Step, StepDone]]:
    """One step ahead: the last one is read once the next is queued."""
    results: list[tuple[Step, StepDone]] = []
    for step in steps:
        head.begin(step)
        if head.unfinished > 1:
            results.append((step, head.finish()))
    while head.unfinished:
        results.append((steps[-1], head.finish()))
    return results


def result_of(plan: Plan) -> StepDone:
    item = plan.inboxes[0].get(timeout=120)
    assert isinstance(item, lane_pb2.StepDone), item
    return StepDone(item.number, tuple(Sampled(one.token, one.logprob) for one in item.sampled))


def run_piped(plan: Plan, head: HeadRunner, steps: Sequence[Step]) -> list[tuple[Step, StepDone]]:
    """Describes the next step ahead while the result is on its way."""
    if plan.kind == "host":
        plan.transfers(0).listen(plan.inboxes[0].put)
    results = []
    for step in steps:
        plan.give(step)
        head.begin(step)
        while head.prepare():
            pass
        done = result_of(plan)
        head.take_result(done)
        results.append((step, done))
    return results


def run_ahead(plan: Plan, head: GraphHeadRunner, steps: Sequence[Step]) -> list[tuple[Step, StepDone]]:
    """One step ahead, as the head's loop does it."""
    ends: list[StepDone] = []

    def end_one() -> None:
        if head.unfinished:
            ends.append(head.finish())
        else:
            assert head.take_result(result_of(plan))

    for count, step in enumerate(steps):
        while head.holds_back(step) or count - len(ends) > 1:
            end_one()
        plan.give(step)
        head.begin(step)
    while len(ends) < len(steps):
        end_one()
    return list(zip(steps, ends, strict=True))


@pytest.mark.parametrize(("kind", "cuts"), PLANS + GRAPHS, ids=str)
def test_rows_of_a_batch_give_what_each_gives_alone(folder: Path, kind: str, cuts: list[int]) -> None:
    lengths, decodes = [6, 9, 14], 8
    plan = Plan(folder, cuts, kind=kind)
    with plan.followers():
        head = plan.runner(0)
        if isinstance(head, GraphHeadRunner):
            results = run_ahead(plan, head, scripted(lengths, decodes))
        elif isinstance(head, HeadRunner):
            results = run_piped(plan, head, scripted(lengths, decodes))
        else:
            results = run_alone(head, scripted(lengths, decodes))
    assert [done.number for _, done in results] == list(range(1, len(lengths) + decodes + 1))
    by_number = {step.number: step for step in scripted(lengths, decodes)}
    told: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for _, done in results:
        step = by_number[done.number]
        if step.kind == "decode":
            for row, sampled in zip(step.rows, done.sampled, strict=True):
                told[row.slot].append(sampled.token)
                assert sampled.logprob < 0
    for slot, length in enumerate(lengths):
        count = decodes // 2 if slot == 1 else decodes
        assert told[slot] == expected(folder, tuple(PROMPT[:length]), count)
    if isinstance(head, HeadRunner) and not plan.steps_ahead:
        assert (head.times.ahead_used, head.times.ahead_dropped) == (decodes - 2, 1)


def test_what_was_described_ahead_in_vain_leaves_nothing_behind(folder: Path) -> None:
    plan = Plan(folder, [2])
    with plan.followers():
        head = plan.runner(0)
        plan.transfers(0).listen(plan.inboxes[0].put)

        def run(step: Step) -> list[int]:
            plan.give(step)
            head.begin(step)
            done = result_of(plan)
            head.take_result(done)
            return [one.token for one in done.sampled]

        opened = (Open(0, "a", 40, Sampling()), Open(1, "b", 40, Sampling()))
        run(Step(1, "prefill", opened, (Row(0, "a", 0),), tuple(PROMPT[:5])))
        told = run(Step(2, "decode", (), (Row(0, "a", 5, PROMPT[5]),)))
        assert head.prepare()
        assert not head.prepare()
        # Another token goes through than the one sampled, at the same place: still what was described.
        other = run(Step(3, "decode", (), (Row(0, "a", 6, None, 1),)))
        assert head.times.ahead_used == 1
        assert head.prepare()
        # A batch comes in between: the description is taken back.
        run(Step(4, "prefill", (), (Row(1, "b", 0),), tuple(PROMPT[:8])))
        rows = (Row(0, "a", 7, None, 2), Row(1, "b", 8, PROMPT[8]))
        both = run(Step(5, "decode", (Compose(0, (0, 1), 40),), rows, batch=0))
        assert head.times.ahead_dropped == 1
    assert [*told, *other, both[0]] == expected(folder, tuple(PROMPT[:6]), 3)
    assert both[1] == expected(folder, tuple(PROMPT[:9]), 1)[0]


def test_steps_that_do_not_fit_are_refused(folder: Path) -> None:
    runner = Plan(folder, []).runner(0)
    opened = Open(0, "a", 20, Sampling())
    with pytest.raises(RemoteScheduleError, match="step 2 came after step 0"):
        runner.begin(Step(2, "operations"))
    runner.begin(Step(1, "prefill", (opened,), (Row(0, "a", 0),), (1, 2)))
    with pytest.raises(RemoteScheduleError, match="step 2 runs slot 0 at offset 7"):
        runner.begin(Step(2, "decode", (), (Row(0, "a", 7, 3),)))
    with pytest.raises(RemoteScheduleError, match="which was nothing"):
        runner.begin(Step(3, "decode", (), (Row(0, "a", 2),)))
    with pytest.raises(RemoteScheduleError, match="not free"):
        runner.begin(Step(4, "operations", (opened,)))


def test_a_step_is_queued_before_the_last_token_is_read(folder: Path) -> None:
    runner = Plan(folder, []).runner(0)
    assert isinstance(runner, LocalRunner)
    runner.begin(Step(1, "decode", (Open(0, "a", 20, Sampling()),), (Row(0, "a", 0, 5),)))
    runner.begin(Step(2, "decode", (), (Row(0, "a", 1, None, 1),)))
    runner.begin(Step(3, "operations", (Close(0, "a"),)))
    assert runner.unfinished == 3
    ended = [runner.finish() for _ in range(3)]
    assert [done.number for done in ended] == [1, 2, 3]
    assert [one.sampled[0].token for one in ended[:2]] == expected(folder, (5,), 2)
    assert all(done.seconds > 0 for done in ended[:2])
    assert ended[2].sampled == ()
    with pytest.raises(LookupError):
        runner.finish()
