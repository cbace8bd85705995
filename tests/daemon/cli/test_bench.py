"""`daemonctl bench` against a scripted daemon: what it asks for, prints, draws and refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from macmesh.testing import ThreadedFakeDaemon, scenes
from macmesh.testing.script import GenerateScript
from macmesh.v1 import cluster_pb2, inference_pb2

from .conftest import Run
from .test_plot import png_size

QUICK = ("--prompt", "20", "--tokens", "5", "--repeats", "2", "--warm-up", "1")


def asked(daemon: ThreadedFakeDaemon) -> list[inference_pb2.GenerateRequest]:
    return [m for _, m in daemon.calls if isinstance(m, inference_pb2.GenerateRequest)]


@pytest.fixture
def small(daemon: ThreadedFakeDaemon) -> ThreadedFakeDaemon:
    """Serves a context of 64, and tells as many tokens as it is asked for."""

    def stats(tokens: int) -> cluster_pb2.GetStageStatsResponse:
        answer = scenes.stage_stats(tokens)
        answer.context_tokens = 64
        return answer

    daemon.script.stage_stats = stats
    daemon.script.generate = GenerateScript(pieces=("x",) * 100)
    return daemon


def test_an_interrupted_request_is_no_measurement(small: ThreadedFakeDaemon, run: Run) -> None:
    small.script.generate = GenerateScript(pieces=("x",) * 100, paused=("stage 1 loads",))
    done = run("bench", *QUICK)
    assert done.code != 0
    assert "a request was interrupted" in done.err


def test_prompts_are_token_ids_of_the_vocabulary_and_nothing_ends_them(
    daemon: ThreadedFakeDaemon, run: Run
) -> None:
    done = run("bench", *QUICK, "--concurrency", "1..2", "--json")
    assert done.code == 0, done.err
    requests = asked(daemon)
    # One to warm up; cold 2 x 1 and 2 x 2; warm the same, and once before.
    assert len(requests) == 1 + (2 + 4) + (3 + 6)
    for request in requests:
        assert len(request.tokens.token_ids) == 20
        assert all(i < 200_064 for i in request.tokens.token_ids)
        assert (request.max_tokens, request.ignore_eos, request.sampling.temperature) == (5, True, 0.0)
    report = done.json
    assert report["format"] == "daemonctl-bench/1"
    assert report["percentiles"] == "nearest-rank"
    assert report["ledger_complaints"] == []
    assert [(c["prefix"], c["concurrency"], c["requests"]) for c in report["cases"]] == [
        ("cold", 1, 2),
        ("warm", 1, 2),
        ("cold", 2, 4),
        ("warm", 2, 4),
    ]
    for case in report["cases"]:
        assert case["inter_token_seconds"]["count"] == case["requests"] * 4
        assert case["aggregate_tokens_per_second"] > 0
        assert len(case["stages"]) == 3
        for stage in case["stages"]:
            assert stage["steps"] == case["requests"] * 5
            assert stage["phase_ms_per_step"]["describe"] == pytest.approx(0.2)
            assert stage["transport_ms_per_step"] == pytest.approx(0.2)
            assert stage["within_ledger"] is True


def test_the_same_seed_asks_the_same_and_another_does_not(daemon: ThreadedFakeDaemon, run: Run) -> None:
    for seed in ("1", "1", "2"):
        assert run("bench", *QUICK, "--prefix", "cold", "--seed", seed, "--vocabulary", "77").code == 0
    requests = asked(daemon)
    first, again, other = (requests[i : i + 3] for i in (0, 3, 6))
    assert first == again
    assert first != other
    assert max(i for r in requests for i in r.tokens.token_ids) < 77


@pytest.mark.usefixtures("daemon")
def test_the_tables(run: Run) -> None:
    done = run("bench", *QUICK, "--prefix", "cold")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].startswith("MiniMax-M2.5-5bit  epoch 1.3.2  3 stages  context 196,608")
    [header] = [line for line in lines if line.startswith("PROMPT") and "TTFT" in line]
    assert " ".join(header.split()) == (
        "PROMPT NEW PREFIX AT ONCE TTFT p50 p95 ITL p50 p95 p99 PREFILL tok/s DECODE tok/s ALL tok/s HITS"
    )
    stage = next(line for line in lines if " 36-53 " in line)
    assert "0.200" in stage
    assert "0.600" in stage
    assert stage.split()[-5:] == ["32.0", "GB", "43.0", "GB", "within"]
    assert "warming up" in done.err


@pytest.mark.usefixtures("small")
def test_a_sweep_goes_over_the_lengths_one_at_a_time(run: Run) -> None:
    done = run("bench", *QUICK, "--sweep", "40,10,25", "--json")
    assert [(c["suite"], c["prompt_tokens"]) for c in done.json["cases"]] == [
        ("sweep", 10),
        ("sweep", 25),
        ("sweep", 40),
    ]
    whole = run("bench", *QUICK, "--sweep", "--json")
    assert [c["prompt_tokens"] for c in whole.json["cases"]] == [59]
    too_long = run("bench", *QUICK, "--sweep", "10,60", "--json")
    assert too_long.code == 2
    assert "at most 59" in too_long.json["error"]["message"]


def test_a_climb_fills_the_context(small: ThreadedFakeDaemon, run: Run) -> None:
    done = run("bench", "--climb", "--tokens", "5", "--json")
    assert done.code == 0, done.err
    climb = done.json["climb"]
    assert (climb["context_tokens"], climb["reached_tokens"], climb["within_ledgers"]) == (64, 64, True)
    assert [len(r.tokens.token_ids) for r in asked(small)] == [3, 11, 27, 59]
    assert done.json["cases"] == []
    shown = run("bench", "--climb", "--tokens", "5")
    assert "reached the whole context of 64 tokens within every ledger" in shown.out
    assert "64 tokens: first token after" in shown.err


def test_a_peak_above_its_ledger_stops_a_climb_and_fails_every_bench(
    small: ThreadedFakeDaemon, run: Run
) -> None:
    held = small.script.stage_stats

    def above(tokens: int) -> cluster_pb2.GetStageStatsResponse:
        answer = held(tokens)
        ledger = answer.stages[1].stage.ledger
        answer.stages[1].stats.peak_memory_bytes = sum(e.size_bytes for e in ledger.entries) + 7
        return answer

    small.script.stage_stats = above
    climb = run("bench", "--climb", "--tokens", "5", "--json")
    assert climb.code == 1
    assert climb.json["climb"]["within_ledgers"] is False
    assert "7 more than the 43,000,000,000 of its ledger" in climb.json["climb"]["complaint"]
    assert "the climb stopped at 8 of 64 tokens: stage 1" in climb.err
    load = run("bench", *QUICK, "--prefix", "cold")
    assert load.code == 1
    assert "above its ledger" in load.out
    assert "a ledger does not hold: stage 1: 43,000,000,007 bytes" in load.err


def test_a_stage_that_does_not_answer_is_listed_with_the_reason(small: ThreadedFakeDaemon, run: Run) -> None:
    held = small.script.stage_stats

    def silent(tokens: int) -> cluster_pb2.GetStageStatsResponse:
        answer = held(tokens)
        answer.stages[2].ClearField("stats")
        answer.stages[2].reason = "another node did not answer"
        return answer

    small.script.stage_stats = silent
    done = run("bench", *QUICK, "--prefix", "cold")
    assert done.code == 0
    assert "another node did not answer" in done.out


@pytest.mark.usefixtures("small")
def test_plots_of_every_kind(run: Run, tmp_path: Path) -> None:
    load, sweep = tmp_path / "load.png", tmp_path / "sweep.png"
    done = run("bench", *QUICK, "--plot", str(load))
    assert f"wrote {load}" in done.err
    assert run("bench", *QUICK, "--sweep", "10,20", "--climb", "--plot", str(sweep)).code == 0
    assert png_size(load) == (1200, 900)  # two diagrams
    assert png_size(sweep) == (1200, 1800)  # four
    nowhere = run("bench", *QUICK, "--plot", str(tmp_path / "no" / "p.png"))
    assert nowhere.code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--concurrency", "4..1"), "counts down"),
        (("--concurrency", "0"), "below 1"),
        (("--sweep", "x"), "no whole number"),
        (("--prompt", "0"), "below 1"),
    ],
)
def test_wrong_arguments_are_usage_errors(run: Run, arguments: tuple[str, ...], words: str) -> None:
    done = run("bench", *arguments)
    assert done.code == 2
    assert words in done.err


def test_a_baseline_needs_the_model_here(daemon: ThreadedFakeDaemon, run: Run, tmp_path: Path) -> None:
    done = run("bench", *QUICK, "--baseline", "--baseline-model", str(tmp_path / "none"))
    assert done.code == 2
    assert "--baseline-model" in done.err
    assert asked(daemon) == []


@pytest.mark.usefixtures("daemon")
def test_a_generation_that_ends_early_is_an_error(run: Run) -> None:
    done = run("bench", "--prompt", "20", "--tokens", "9", "--json")
    assert done.code == 1
    error: dict[str, Any] = json.loads(done.out)["error"]
    assert error["reason"] == "BENCH_FAILED"
    assert "gave 5" in error["message"]
