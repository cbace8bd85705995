"""Chunks of prompts beside others that decode: their size follows the delay that they cause, on whichever stage."""

import itertools

import pytest

from macmesh_daemon.engine.limits import AnyCaches, Limits
from macmesh_daemon.engine.prefill import ChunkSizer
from macmesh_daemon.engine.requests import Request
from macmesh_daemon.engine.steps import Step
from macmesh_placement.stagecache import StageCacheCost
from support.schedule import Pipeline, growing

SLICE_SECONDS = 0.2
DECODE_SECONDS = 0.01
PROMPT_SECONDS = 0.002


def limits(stages: int) -> Limits:
    return Limits(
        context_tokens=6000,
        slots=2,
        stages=stages,
        prefill_chunk_tokens=1024,
        prefill_slice_seconds=SLICE_SECONDS,
    )


def seconds(step: Step) -> float:
    return PROMPT_SECONDS * step.token_count if step.kind == "prefill" else DECODE_SECONDS * bool(step.rows)


@pytest.mark.parametrize("shares", [(1.0, 0.02), (0.02, 1.0), (1.0, 1.0), (0.1, 1.0, 0.02), (1.0,)])
def test_a_slow_stage_anywhere_makes_chunks_small(shares: tuple[float, ...]) -> None:
    allowed = limits(len(shares))
    cost = StageCacheCost(((growing(1), 20),), 0)
    budget = 4 * cost.reserved_bytes(allowed.context_tokens)
    one = Pipeline(
        allowed,
        [cost] * len(shares),
        [budget] * len(shares),
        AnyCaches(),
        seconds,
        words=1000,
        prompt_shares=shares,
    )
    one.submit(Request("stream", tuple(range(64)), 1000))
    while len(one.tokens["stream"]) < 20:
        one.turn()
    sent = one.now
    one.submit(Request("long", tuple(range(1000, 5000)), 2))
    while not one.tokens["long"]:
        one.turn()
    during = [b - a for a, b in itertools.pairwise(one.told_at["stream"]) if b > sent]
    assert max(during) <= SLICE_SECONDS + 2 * DECODE_SECONDS * len(shares) + 0.064 * len(shares)
    # And the prompt gets a good share of the slowest stage.
    assert one.told_at["long"][0] - sent <= 4000 * PROMPT_SECONDS * max(shares) * 2.2


def test_chunks_that_follow_each_other_tell_the_slowest_stage_alone() -> None:
    sizer = ChunkSizer(limits(4))
    assert sizer.slice_tokens() == 256
    sizer.took(1000, 0.25, others_decode=False)
    # 0.25 ms a token on one of four stages, all of which a decode step may meet.
    assert sizer.slice_tokens() == 192
    sizer.took(200, 0.05, others_decode=True)
    # That one was the whole delay; the newest counts for half.
    assert sizer.slice_tokens() == int(0.2 / ((0.001 + 0.00025) / 2)) // 32 * 32
    before = sizer.slice_tokens()
    sizer.took(0, 1.0, others_decode=True)
    sizer.took(10, 0.0, others_decode=True)
    assert sizer.slice_tokens() == before
