"""A run that goes on behind the tokens of an earlier one gives what that would have given, wherever it was cut."""

from pathlib import Path

import pytest

from macmesh.v1 import inference_pb2, lane_pb2, peer_pb2
from macmesh_daemon.engine.limits import Limits
from macmesh_daemon.engine.scheduler import Scheduler
from macmesh_daemon.worker.loops import Wake
from support.stage_threads import EPOCH, Plan, turn_until
from tinymodels import write_tiny_model

PROMPT = [(7 * i * i + 3) % 300 + 4 for i in range(11)]
COUNT = 10
SAMPLINGS = {
    "greedy": inference_pb2.SamplingParameters(),
    "seeded": inference_pb2.SamplingParameters(temperature=1.0, top_p=0.95, seed=7),
    # The window reaches over the end of the prompt, and over every cut.
    "penalties": inference_pb2.SamplingParameters(
        temperature=0.8,
        min_p=0.01,
        seed=11,
        repetition_penalty=1.3,
        repetition_context_tokens=9,
        presence_penalty=0.4,
        frequency_penalty=0.3,
        logit_bias=[inference_pb2.LogitBias(token_id=t, bias=1.5) for t in (5, 17, 200)],
    ),
    "greedy penalties": inference_pb2.SamplingParameters(
        repetition_penalty=1.5, repetition_context_tokens=4, frequency_penalty=0.5
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "llama_sliding")


def submit(name: str, sampling: str, generated: list[int], **more: object) -> lane_pb2.SubmitRequest:
    request = peer_pb2.RunRequestRequest(
        epoch=EPOCH,
        request_id=name,
        prompt_token_ids=PROMPT,
        generated_token_ids=generated,
        max_tokens=COUNT,
        sampling=SAMPLINGS[sampling],
        **{"reuse_prefix": False, "keep": False, **more},  # type: ignore[arg-type]
    )
    return lane_pb2.SubmitRequest(request=request)


def told(plan: Plan, name: str) -> list[peer_pb2.RunRequestResponse]:
    return [e.progress.response for e in plan.events if e.progress.request_id == name]


def ended(plan: Plan) -> set[str]:
    return {e.progress.request_id for e in plan.events if e.progress.response.finish_reason}


def scheduler(stages: int) -> Scheduler:
    return Scheduler(
        Limits(
            context_tokens=64,
            slots=3,
            stages=stages,
            prefill_chunk_tokens=8,
            lookahead=int(stages == 1),
            slots_at_once=4,
            batch_rows=4,
            keep_least_tokens=4,
        )
    )


def check_every_cut(plan: Plan, stages: int, samplings: list[str], **more: object) -> Scheduler:
    """Each stream whole, then from every cut on; one after the other."""
    schedule = scheduler(stages)
    with plan.followers():
        loop, inbox = plan.head_loop(schedule)
        for sampling in samplings:
            inbox.put(submit(sampling, sampling, [], **more))
            turn_until(loop, inbox, lambda: sampling in ended(plan))  # noqa: B023  called in this round
            whole = told(plan, sampling)
            tokens = [response.token_id for response in whole]
            assert [response.index for response in whole] == list(range(COUNT))
            for cut in range(1, COUNT):
                name = f"{sampling}/{cut}"
                inbox.put(submit(name, sampling, tokens[:cut], **more))
                turn_until(loop, inbox, lambda: name in ended(plan))  # noqa: B023  as above
                rest = told(plan, name)
                assert [response.index for response in rest] == list(range(cut, COUNT))
                assert [response.token_id for response in rest] == tokens[cut:], name
                assert [response.finish_reason for response in rest] == [
                    *[0] * (COUNT - cut - 1),
                    inference_pb2.FINISH_REASON_LENGTH,
                ]
                for response, before in zip(rest, whole[cut:], strict=True):
                    assert response.logprob == pytest.approx(before.logprob, abs=1e-4)
    assert plan.failures == []
    return schedule


def test_a_replay_goes_on_as_the_run_would_have(folder: Path) -> None:
    check_every_cut(Plan(folder, []), 1, list(SAMPLINGS))


def test_a_replay_on_two_stages_goes_on_as_well(folder: Path) -> None:
    check_every_cut(Plan(folder, [2]), 2, ["penalties"])


def test_a_replay_may_take_up_what_was_kept(tmp_path: Path) -> None:
    plan = Plan(write_tiny_model(tmp_path, "qwen3"), [])  # whose caches can be cut to any length
    schedule = check_every_cut(plan, 1, ["penalties"], reuse_prefix=True, keep=True)
    assert schedule.stats.prefix_hits > 0


def test_a_replay_runs_beside_others(folder: Path) -> None:
    plan = Plan(folder, [])
    loop, inbox = plan.head_loop(scheduler(1))
    inbox.put(submit("whole", "seeded", []))
    turn_until(loop, inbox, lambda: "whole" in ended(plan))
    tokens = [response.token_id for response in told(plan, "whole")]
    for cut in (3, 9):
        inbox.put(submit(f"cut {cut}", "seeded", tokens[:cut]))
    inbox.put(submit("other", "greedy", []))
    turn_until(loop, inbox, lambda: len(ended(plan)) == 4)
    for cut in (3, 9):
        assert [response.token_id for response in told(plan, f"cut {cut}")] == tokens[cut:]


def test_a_replay_with_nothing_left_to_generate_is_refused(folder: Path) -> None:
    plan = Plan(folder, [])
    loop, inbox = plan.head_loop(scheduler(1))
    inbox.put(submit("over", "greedy", [5] * COUNT))
    inbox.put(submit("outside", "greedy", [5, 999]))
    for _ in range(2):
        inbox.put(Wake())
        loop.turn(inbox)
    assert [event.failed.reason for event in plan.events] == ["INVALID_ARGUMENT", "INVALID_ARGUMENT"]
