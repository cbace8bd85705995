"""mlx-lm alone and over MLX's `ring`, in real processes."""

from pathlib import Path

import pytest

from macmesh_daemon.bench.baseline import Job, run_alone, run_ring
from macmesh_daemon.bench.cases import Case, prompts
from macmesh_daemon.bench.errors import LocalBaselineError
from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.results import BaselineCase, CaseResult
from macmesh_daemon.models.demo import demo_model_folder
from tinymodels import VOCABULARY, write_tiny_model

COLD = Case("load", "cold", 20, 6, rounds=2)


def result(case: Case, answers: tuple[tuple[int, ...], ...]) -> CaseResult:
    runs = tuple(RequestRun(case.prompt_tokens, 0.0, (Arrival(1.0, ids),)) for ids in answers)
    return CaseResult(case, runs, 1.0, ())


def job(folder: Path, *results: CaseResult, vocabulary: int = VOCABULARY) -> Job:
    return Job(folder, results, 3, vocabulary, 512, 1, 120.0)


def test_only_cold_prompts_one_at_a_time_are_compared() -> None:
    cases = [
        COLD,
        Case("load", "warm", 20, 6),
        Case("load", "cold", 20, 6, concurrency=2),
        Case("sweep", "cold", 40, 5),
    ]
    asked = job(Path("/nowhere"), *(result(c, ()) for c in cases))
    wire = asked.wire()
    assert wire["max_tokens"] == [6, 6, 5]
    assert wire["runs"][:2] == [prompts(COLD, 3, VOCABULARY, r)[0] for r in (0, 1)]
    assert [len(p) for p in wire["runs"]] == [20, 20, 40]
    assert [len(p) for p in wire["warm_up"]] == [40]
    assert wire["warm_up"][0] != wire["runs"][2]


async def test_nothing_to_compare_is_said_before_anything_runs() -> None:
    warm = result(Case("load", "warm", 20, 6), ())
    with pytest.raises(LocalBaselineError, match="none were measured"):
        await run_alone(job(Path("/nowhere"), warm))


@pytest.mark.process
async def test_alone_and_over_the_ring_give_the_same_tokens(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "m", "qwen2")
    first = await run_alone(job(folder, result(COLD, ((), ()))))
    [case] = first.cases
    assert not case.identical
    assert [len(run.token_ids) for run in case.runs] == [6, 6]
    assert case.decode_tokens_per_second > 0
    assert case.prefill_tokens_per_second > 0
    assert len(first.peak_memory_bytes) == 1

    theirs = result(COLD, tuple(run.token_ids for run in case.runs))
    ring = await run_ring(job(folder, theirs), 2)
    assert ring.refusal == ""
    assert [c.identical for c in ring.cases] == [True]
    assert len(ring.peak_memory_bytes) == 2
    assert ring.to_json()["cases"][0]["requests"] == 2


@pytest.mark.process
async def test_a_model_without_a_pipeline_is_refused_and_a_missing_one_fails(tmp_path: Path) -> None:
    ring = await run_ring(job(demo_model_folder(), result(COLD, ((), ()))), 2)
    assert ring.refusal == "mlx-lm has no pipeline() for qwen3"
    assert ring.cases == ()
    with pytest.raises(LocalBaselineError, match="exit code 1"):
        await run_alone(job(tmp_path / "none", result(COLD, ((), ()))))


def test_speeds_are_medians() -> None:
    runs = tuple(
        RequestRun(100, 0.0, (Arrival(first, (1,)), Arrival(first + gap, (2,))))
        for first, gap in ((1.0, 0.1), (2.0, 0.2), (4.0, 0.4))
    )
    case = BaselineCase(COLD, runs, identical=True)
    assert case.prefill_tokens_per_second == pytest.approx(50)
    assert case.decode_tokens_per_second == pytest.approx(5)
