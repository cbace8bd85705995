"""The bench of the daemon's ring runs, and tells what it promises."""

import json

import pytest

from bench_scripts import load_script


@pytest.mark.process
def test_a_short_run_compares_every_way(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = load_script("daemon_ring")
    monkeypatch.setattr(bench, "IDLE_SECONDS", 0.05)
    assert bench.main(["--json", "--paced", "20", "--burst", "500", "--rounds", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == "macmesh-bench-daemon-ring/1"
    assert [row["kind"] for row in found["results"]] == ["ring", "socket", "socket_by_loop", "pipe"]
    for row in found["results"]:
        assert 0 < row["p50_us"] <= row["p99_us"]
        assert row["messages_per_second"] > 0
