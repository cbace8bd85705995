"""Sizes of chunks where a prompt has the stages for itself."""

import math

import pytest

from macmesh_daemon.engine.limits import AnyCaches, Limits
from macmesh_daemon.engine.prefill import ChunkCost, ChunkSizer
from macmesh_daemon.engine.requests import Request
from macmesh_daemon.engine.steps import Step
from macmesh_placement.stagecache import StageCacheCost
from support.schedule import Pipeline, growing

TOKEN_SECONDS = 0.0001


def measured(limits: Limits, overhead_tokens: float) -> ChunkSizer:
    sizer = ChunkSizer(limits)
    for tokens in (1024, 512) * 3:
        sizer.cost.took(tokens, 0, TOKEN_SECONDS * (overhead_tokens + tokens))
    return sizer


def prompt_seconds(body: int, chunk: int, stages: int, overhead_tokens: float) -> float:
    """All stages alike, as a pipeline of them runs."""
    count = math.ceil(body / chunk)
    return TOKEN_SECONDS * ((stages - 1) * (overhead_tokens + chunk) + count * overhead_tokens + body)


@pytest.mark.parametrize("stages", [2, 3, 6])
@pytest.mark.parametrize("overhead_tokens", [4, 64, 300])
@pytest.mark.parametrize("body", [700, 2047, 8191, 32767])
def test_chunks_are_near_the_best_of_all_sizes(stages: int, overhead_tokens: int, body: int) -> None:
    limits = Limits(40_000, 1, stages, 1024)
    chosen = measured(limits, overhead_tokens).even_tokens(body)
    assert limits.prefill_even_least_tokens <= chosen <= 1024
    assert chosen % 128 == 0
    sizes = range(limits.prefill_even_least_tokens, 1025)
    best = min(prompt_seconds(body, size, stages, overhead_tokens) for size in sizes)
    assert prompt_seconds(body, chosen, stages, overhead_tokens) <= 1.06 * best


def test_chunks_stay_whole_for_one_stage_short_prompts_and_before_any_was_measured() -> None:
    assert measured(Limits(40_000, 1, 1, 1024), 1).even_tokens(8191) == 1024
    assert measured(Limits(40_000, 1, 2, 1024), 1).even_tokens(200) == 1024
    assert measured(Limits(40_000, 1, 2, 200), 1).even_tokens(8191) == 200
    assert ChunkSizer(Limits(40_000, 1, 2, 1024)).even_tokens(8191) == 1024


def test_the_cost_of_a_chunk_is_told_from_two_sizes_whatever_a_few_of_them_took() -> None:
    cost = ChunkCost(1024, 64)
    for _ in range(3):
        assert cost.tokens is None
        cost.took(1024, 0, TOKEN_SECONDS * (100 + 1024))
    assert cost.tokens == 64
    cost.took(512, 0, 30.0)  # kernels were compiled
    cost.took(512, 8 * 1024 + 1, 0.9)  # far into a prompt
    cost.took(16, 0, 0.9)  # the rest of a prompt
    for _ in range(3):
        cost.took(512, 4096, TOKEN_SECONDS * (100 + 512))
    assert cost.tokens == pytest.approx(100)
    for _ in range(9):
        cost.took(512, 0, 0.0001)  # less per token than whole chunks: none is lost by small ones
    assert cost.tokens == 0
    for _ in range(9):
        cost.took(512, 0, 1.0)  # as long as whole ones, or longer
    assert cost.tokens == math.inf
    assert ChunkSizer(Limits(40_000, 1, 2, 1024)).cost.tokens is None


def test_a_pipeline_learns_and_is_quicker_for_it() -> None:
    limits = Limits(40_000, 2, 2, 1024)
    cost = StageCacheCost(((growing(1), 1),), 0)

    def seconds(step: Step) -> float:
        return TOKEN_SECONDS * (20 + step.token_count)

    pipeline = Pipeline(limits, [cost] * 2, [200_000] * 2, AnyCaches(), seconds)
    took = []
    for number in range(4):
        began = pipeline.now
        prompt = tuple(number + index % 97 for index in range(8192))
        pipeline.submit(Request(f"{number}", prompt, 1, keep=False))
        pipeline.run()
        took.append(pipeline.now - began)
    chunks = [
        [s.token_count for s in pipeline.steps if s.rows and s.rows[0].request_id == f"{n}"] for n in range(4)
    ]
    assert chunks[0] == [1024] * 7 + [1023, 1]
    assert chunks[1][0] == 768  # by the overhead that is assumed
    assert chunks[2][0] == chunks[3][0] == 512  # the measured one: sqrt(20 * 8191) is 405
    assert took[0] > took[1] > took[2]
    assert took[2] / took[0] < 0.97
    assert all(len(set(one[:-2])) == 1 for one in chunks)
