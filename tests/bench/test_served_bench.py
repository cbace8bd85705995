"""The benchmark of what clients get: a run with a real daemon and worker, and what it makes of the figures."""

import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bench_scripts import load_script
from macmesh_daemon.bench.cases import Case
from macmesh_daemon.bench.requests import Arrival, RequestRun
from macmesh_daemon.bench.results import Baseline, BaselineCase, CaseResult
from macmesh_daemon.bench.stages import StageWork
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.models.tokenizer import ModelTokenizer

ONE = Case("load", "cold", 4, 3, 1, 2)
TWO = Case("load", "cold", 4, 3, 2, 1)
SMI = """0, GPU-aa, NVIDIA H200, 143771
1, GPU-bb, NVIDIA H200, 143771
"""


@pytest.fixture(scope="module")
def served() -> ModuleType:
    return load_script("served")


@pytest.fixture(scope="module")
def random_model() -> ModuleType:
    return load_script("random_model")


def run(*arrivals: float) -> RequestRun:
    return RequestRun(4, 0.0, tuple(Arrival(at, (7,)) for at in arrivals))


def stage(peak: int, *, reason: str = "") -> StageWork:
    return StageWork(0, "node", 0, 2, 100, peak_memory_bytes=peak, steps=4, reason=reason)


def results(*works: StageWork) -> list[CaseResult]:
    return [
        CaseResult(ONE, (run(1.0, 1.5, 2.0), run(1.0, 1.5, 2.0)), 4.0, (works[0],)),
        CaseResult(TWO, (run(1.0, 1.5, 2.0), run(1.25, 1.75, 2.25)), 3.0, (works[1],)),
    ]


def native() -> Baseline:
    return Baseline("mlx-lm", (BaselineCase(ONE, (run(1.0, 1.25, 1.5),) * 2, identical=False),), (55,))


def test_cards_are_those_that_the_variable_leaves(served: ModuleType) -> None:
    numbers = [card.number for card in served.parse_cards(SMI, None)]
    assert numbers == ["0", "1"]
    assert [c.number for c in served.parse_cards(SMI, "1")] == ["1"]
    [named] = served.parse_cards(SMI, "GPU-bb")
    assert (named.number, named.name, named.memory_bytes) == ("GPU-bb", "NVIDIA H200", 143_771 << 20)
    assert served.parse_cards(SMI, "") == []


def test_the_report_compares_and_judges(served: ModuleType) -> None:
    report = served.report_of(results(stage(90), stage(95)), native(), None, {"shape": "least"})
    assert report["native_tokens_per_second"] == [4.0]
    assert report["served_tokens_per_second"] == 2.0
    assert report["ratio"] == 0.5
    assert report["identical"] is True
    # From the later first token (1.25) to the earlier last one (2.0) come 1.5, 1.75 and 2.0.
    assert report["at_once"] == [
        {"requests": 2, "tokens_per_second": 4.0, "wall_tokens_per_second": 2.0, "against_one": 2.0}
    ]
    assert report["arrival"] is None
    assert report["memory"] == [
        {"stage": 0, "layers": 2, "peak_memory_bytes": 95, "ledger_bytes": 100, "within": True}
    ]
    assert report["within"] is True


def test_a_peak_above_its_ledger_or_unknown_is_not_within(served: ModuleType) -> None:
    assert served.report_of(results(stage(90), stage(101)), native(), None, {})["within"] is False
    silent = served.report_of(results(stage(90), stage(0, reason="it does not answer")), native(), None, {})
    assert (silent["memory"][0]["within"], silent["within"]) == (None, False)


def test_a_random_model_is_whole_and_the_same_for_the_same_seed(
    random_model: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = [
        random_model._Tensor("l.weight", (8, 16), "U32", 4),
        random_model._Tensor("l.scales", (8, 2), "BF16", 2),
        random_model._Tensor("l.biases", (8, 2), "BF16", 2),
        random_model._Tensor("l.bias", (8,), "BF16", 2),
        random_model._Tensor("norm.weight", (64,), "BF16", 2),
        random_model._Tensor("e.weight", (32, 64), "BF16", 2),
    ]
    monkeypatch.setattr(random_model, "_tensors", lambda _config, _bits: tensors)
    monkeypatch.setattr(random_model, "_SHARD_BYTES", 600)
    monkeypatch.setattr(random_model, "_BLOCK_ITEMS", 100)
    sizes = [random_model.write_model(tmp_path / name, "7b", 4) for name in ("a", "b")]
    first, second = read_folder(tmp_path / "a"), read_folder(tmp_path / "b")
    assert sizes == [first.total_bytes, first.total_bytes]
    assert len(first.weight_files) == 3
    assert first.digest == second.digest
    contents = [
        [(folder.path / file).read_bytes() for file in folder.weight_files] for folder in (first, second)
    ]
    assert contents[0] == contents[1]
    embedding = first.tensors["e.weight"]
    raw = (first.path / embedding.file).read_bytes()[embedding.begin : embedding.end]
    values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert 0.11 < values.std() < 0.14  # 1 / sqrt(64) is 0.125
    # Every token has a text, the last one too.
    tokenizer = ModelTokenizer.from_folder(first.path)
    assert tokenizer.vocab_size == 152_064
    assert tokenizer.decode([152_063]) == " w251ff"


@pytest.mark.process
def test_a_short_run_serves_through_a_real_daemon(
    served: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "--shape",
        "least",
        "--model",
        str(tmp_path),
        "--tokens",
        "6",
        "--prompt",
        "9",
        "--rounds",
        "1",
    ]
    arguments += [
        "--concurrency",
        "1,2",
        "--no-probe",
        "--warm-up",
        "1",
        "--arrival",
        "300",
        "--cpu",
        "--deadline",
        "60",
    ]
    assert served.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "macmesh-bench-served/1"
    assert report["identical"] is True
    assert report["layers"] == [2]
    assert report["native_tokens_per_second"][0] > 0
    assert report["served_tokens_per_second"] > 0
    assert [case["requests"] for case in report["at_once"]] == [2]
    assert (report["arrival"]["prompt_tokens"], report["arrival"]["rounds"]) == (300, 1)
    assert report["arrival"]["steady_ms"]["count"] >= 30
    assert report["arrival"]["during_ms"]["largest"] > 0
    assert report["prefix_hit_rate"] is not None
    [memory] = report["memory"]
    assert 0 < memory["peak_memory_bytes"] <= memory["ledger_bytes"]
    assert report["within"] is True
