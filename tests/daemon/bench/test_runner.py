"""Runs against a target whose times are known, in virtual time."""

import pytest

from macmesh_daemon.bench.cases import Case, rungs
from macmesh_daemon.bench.errors import RemoteAnswerError
from macmesh_daemon.bench.results import BenchReport
from macmesh_daemon.bench.runner import Runner
from macmesh_daemon.bench.target import served_of
from macmesh_daemon.bench.testing import FakeTarget
from support.virtual_loop import LoopClock, run_virtual


def runner(target: FakeTarget) -> Runner:
    return Runner(target, LoopClock(), seed=1, vocabulary_tokens=1000)


def test_times_and_speeds_of_a_case_are_those_of_the_target() -> None:
    async def scene() -> None:
        target = FakeTarget(prefill_seconds_per_token=0.001, decode_seconds=0.05)
        result = await runner(target).case(Case("load", "cold", 200, 11, rounds=3))
        assert len(result.runs) == 3
        assert result.first_token_seconds.p50 == pytest.approx(0.25)
        assert result.inter_token_seconds.p99 == pytest.approx(0.05)
        assert result.inter_token_seconds.count == 30
        assert result.prefill_tokens_per_second == pytest.approx(800)
        assert result.decode_tokens_per_second == pytest.approx(20)
        assert result.wall_seconds == pytest.approx(3 * 0.75)
        assert result.aggregate_tokens_per_second == pytest.approx(33 / 2.25)
        for stage in result.stages:
            assert stage.steps == 33
            assert stage.phase_milliseconds_per_step["describe"] == pytest.approx(1)
            assert stage.transport_milliseconds_per_step == pytest.approx(2)
            assert stage.within_ledger is True

    run_virtual(scene())


def test_a_warm_prompt_was_read_before_and_is_not_measured_then() -> None:
    async def scene() -> None:
        target = FakeTarget(slots=2)
        result = await runner(target).case(Case("load", "warm", 300, 4, concurrency=2, rounds=2))
        assert len(target.prompts) == 6  # two of them to warm the prefix
        assert len(result.runs) == 4
        assert result.first_token_seconds.largest == pytest.approx(0.05)
        cold = await runner(target).case(Case("load", "cold", 300, 4, concurrency=2, rounds=2))
        assert cold.first_token_seconds.p50 == pytest.approx(0.35, abs=0.01)

    run_virtual(scene())


def test_requests_of_a_round_run_at_once_and_share_the_wall() -> None:
    async def scene() -> None:
        wide, narrow = FakeTarget(slots=4), FakeTarget(slots=1)
        case = Case("load", "cold", 100, 10, concurrency=4, rounds=1)
        at_once = await runner(wide).case(case)
        in_turn = await runner(narrow).case(case)
        assert (wide.largest_at_once, narrow.largest_at_once) == (4, 1)
        assert at_once.aggregate_tokens_per_second == pytest.approx(40 / 0.6)
        assert in_turn.aggregate_tokens_per_second == pytest.approx(40 / 2.4)
        assert in_turn.first_token_seconds.largest == pytest.approx(1.95)

    run_virtual(scene())


def test_bursts_are_spread_over_their_tokens() -> None:
    async def scene() -> None:
        result = await runner(FakeTarget(burst=4)).case(Case("load", "cold", 10, 12))
        assert result.inter_token_seconds.count == 8
        assert result.inter_token_seconds.p50 == pytest.approx(0.0125)

    run_virtual(scene())


def test_a_warm_up_is_short_and_has_prompts_of_its_own() -> None:
    async def scene() -> None:
        target = FakeTarget()
        await runner(target).warm_up(50, 400, 2)
        assert [len(p) for p in target.prompts] == [50, 50]
        assert target.prompts[0] != target.prompts[1]
        assert (await target.stage_stats()).stages[0].stats.steps == 32

    run_virtual(scene())


def test_a_short_answer_and_a_new_plan_are_errors() -> None:
    async def scene() -> None:
        target = FakeTarget()
        target.short = 1
        with pytest.raises(RemoteAnswerError, match="gave 7"):
            await runner(target).case(Case("load", "cold", 10, 8, concurrency=3))

        class Replanned(FakeTarget):
            async def stage_stats(self):  # type: ignore[no-untyped-def]  # noqa: ANN202  as the base
                self.seq += 1
                return await super().stage_stats()

        with pytest.raises(RemoteAnswerError, match="plan changed"):
            await runner(Replanned()).case(Case("load", "cold", 10, 8))

    run_virtual(scene())


def test_a_climb_is_one_conversation_that_fills_the_context() -> None:
    async def scene() -> None:
        target = FakeTarget(context_tokens=3000)
        told: list[int] = []
        climb = await runner(target).climb(
            rungs(3000, 20, 500), 20, lambda rung: told.append(rung.length_tokens)
        )
        assert told == [500, 1000, 2000, 3000]
        assert [len(p) for p in target.prompts] == [480, 980, 1980, 2980]
        for rung, later in zip(climb.rungs, target.prompts[1:], strict=False):
            asked = target.prompts[climb.rungs.index(rung)]
            assert later[: rung.length_tokens] == asked + rung.run.token_ids
        assert climb.complaint == ""
        assert climb.to_json()["reached_tokens"] == 3000
        # Only what is new is read: the prefix is that of the rung before.
        assert climb.rungs[-1].run.first_token_seconds == pytest.approx(1.0 + 0.05, abs=0.03)

    run_virtual(scene())


def test_a_climb_stops_where_a_stage_passes_its_ledger() -> None:
    async def scene() -> None:
        target = FakeTarget(context_tokens=4000, ledger_bytes=15_000, memory_bytes_per_token=10)
        climb = await runner(target).climb(rungs(4000, 20, 500), 20)
        assert [r.length_tokens for r in climb.rungs] == [500, 1000, 2000]
        assert "at 2,000 of 4,000 tokens" in climb.complaint
        assert "6,000 more than the 15,000 of its ledger" in climb.complaint
        report = BenchReport(served_of(await target.stage_stats()), 1, climb=climb)
        assert report.ledger_complaints == (
            "stage 0: 21,000 bytes at its peak, ledger 15,000",
            "stage 1: 21,000 bytes at its peak, ledger 15,000",
        )

    run_virtual(scene())


def test_a_stage_without_figures_is_listed_with_the_reason_and_stops_a_climb() -> None:
    async def scene() -> None:
        target = FakeTarget()
        target.silent_stage = 1
        result = await runner(target).case(Case("load", "cold", 10, 8, rounds=2))
        assert [s.reason for s in result.stages] == ["", "it does not answer"]
        assert result.stages[1].within_ledger is None
        assert result.stages[1].to_json()["phase_ms_per_step"] == {}
        climb = await runner(target).climb((500, 4096), 8)
        assert len(climb.rungs) == 1
        assert "stage 1 (node node1, layers 1-1) cannot be checked: it does not answer" in climb.complaint

    run_virtual(scene())
