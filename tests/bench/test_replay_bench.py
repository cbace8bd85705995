"""The benchmark of replay: on a CPU a replayed stream is the one that was interrupted."""

import json
from pathlib import Path

import pytest

from bench_scripts import load_script


def test_a_replay_on_a_cpu_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--shape", "least", "--bits", "0", "--model", str(tmp_path), "--prompt", "9", "--chunk", "4"]
    arguments += ["--tokens", "12", "--cuts", "3", "--after", "5"]
    assert load_script("replay").main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "macmesh-bench-replay/1"
    for kind in ("greedy", "sampled"):
        assert (report[kind]["cuts"], report[kind]["identical"]) == (3, 3)
        assert report[kind]["log_probability_apart_largest"] == 0.0
        assert report[kind]["top_two_apart_median"] > 0


def test_more_tokens_after_a_cut_than_there_are_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        load_script("replay").main(["--tokens", "8", "--after", "8"])
    assert exit_.value.code == 2
    assert "--after must be less than --tokens" in capsys.readouterr().err
