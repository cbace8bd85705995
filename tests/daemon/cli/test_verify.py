"""`daemonctl verify`: real workers against real mlx-lm, and what is printed where they differ."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import tinymodels
from macmesh_daemon.supervisor import verify as verify_module
from macmesh_daemon.supervisor.errors import LocalVerifyError
from macmesh_daemon.supervisor.verify import Generation, VerifyReport

from .conftest import Run


@pytest.fixture
def model_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MACMESH_DATA_DIR", str(tmp_path / "data"))
    return tinymodels.write_tiny_model(tmp_path / "tiny", "qwen3")


def report(ours: Sequence[int], theirs: Sequence[int]) -> VerifyReport:
    difference = verify_module.first_difference(ours, theirs)
    return VerifyReport(
        identical=difference is None,
        first_difference=difference,
        stage_layers=((0, 2), (2, 4)),
        pipeline=Generation(tuple(ours), 1.0, 0.5, 0.2),
        reference=Generation(tuple(theirs), 1.0, 0.5, 0.1),
    )


@pytest.mark.process
def test_identical_with_real_processes(run: Run, model_folder: Path) -> None:
    outcome = run(
        "verify", str(model_folder), "--stages", "2", "--token-ids", "1,2,3", "--tokens", "6", "--json"
    )
    assert outcome.code == 0, outcome.err
    value = outcome.json
    assert value["format"] == "daemonctl-verify/1"
    assert (value["identical"], value["tokens"], value["stages"]) == (True, 6, [[0, 2], [2, 4]])
    assert value["pipeline"]["token_ids"] == value["reference"]["token_ids"]


def test_tokens_that_differ_are_exit_1(run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    async def differing(_folder: Path, prompt: Sequence[int], tokens: int, **options: Any) -> VerifyReport:
        asked.append({"prompt": list(prompt), "tokens": tokens, **options})
        return report([5, 6, 7], [5, 9, 7])

    monkeypatch.setattr(verify_module, "verify", differing)
    outcome = run(
        "verify",
        str(model_folder),
        "--cuts",
        "1,3",
        "--token-ids",
        "4,5",
        "--tokens",
        "3",
        "--timeout",
        "9",
        "--kv-bits",
        "8",
    )
    assert outcome.code == 1
    assert outcome.out.splitlines()[0] == "stage 0: layers 0-1"
    assert outcome.out.endswith("identical to single-process mlx-lm: no (token 1: 6, mlx-lm has 9)\n")
    assert asked == [
        {"prompt": [4, 5], "tokens": 3, "stages": 3, "cuts": [1, 3], "kv_bits": 8, "deadline_seconds": 9.0}
    ]
    assert "caches of 8 bits" in outcome.err


def test_a_side_that_ends_early_differs(
    run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def shorter(*_: Any, **__: Any) -> VerifyReport:
        return report([5], [5, 9])

    monkeypatch.setattr(verify_module, "verify", shorter)
    outcome = run("verify", str(model_folder), "--token-ids", "4")
    assert outcome.code == 1
    assert "no (token 1: none, mlx-lm has 9)" in outcome.out


def test_what_cannot_be_compared(run: Run, model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    too_many = run("verify", str(model_folder), "--stages", "5", "--token-ids", "1")
    assert too_many.code == 1
    assert "4 layers cannot be cut into 5 stages" in too_many.err
    no_tokenizer = run("verify", str(model_folder), "--json")
    assert no_tokenizer.code == 1
    assert "--token-ids" in no_tokenizer.err
    assert no_tokenizer.json["error"]["reason"] == "MODEL_BROKEN"
    missing = run("verify", str(model_folder / "gone"), "--json")
    assert missing.json["error"]["reason"] == "MODEL_NOT_FOUND"
    contradiction = run("verify", str(model_folder), "--stages", "3", "--cuts", "2")
    assert contradiction.code == 2
    assert run("verify", str(model_folder), "--cuts", "two").code == 2

    async def failing(*_: Any, **__: Any) -> VerifyReport:
        raise LocalVerifyError("the worker of stage 1 ended: killed")

    monkeypatch.setattr(verify_module, "verify", failing)
    failed = run("verify", str(model_folder), "--token-ids", "1")
    assert failed.code == 1
    assert "the worker of stage 1 ended" in failed.err
