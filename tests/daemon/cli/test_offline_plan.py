"""`daemonctl plan --cluster`: planning without any daemon."""

import json
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture(autouse=True)
def no_daemon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MACMESH_SOCKET", str(tmp_path / "nobody.sock"))


def test_the_small_node_gets_few_layers_and_every_ledger_closes(
    run: Run, profile_file: Path, cluster_file: Path
) -> None:
    outcome = run("plan", str(profile_file), "--cluster", str(cluster_file), "--context", "196608", "--json")
    assert outcome.code == 0, outcome.err
    value = outcome.json
    assert value["format"] == "daemonctl-plan/1"
    assert value["feasible"] is True
    stages = value["stages"]
    assert sum(s["end_layer"] - s["first_layer"] for s in stages) == 62
    for stage in stages:
        ledger = stage["ledger"]
        total = sum(entry["size_bytes"] for entry in ledger["entries"])
        assert ledger["usable_bytes"] - total == ledger["headroom_bytes"] >= 0
        if stage["node_id"] == "book":
            assert stage["end_layer"] - stage["first_layer"] <= 8


def test_for_people(run: Run, profile_file: Path, cluster_file: Path) -> None:
    outcome = run("plan", str(profile_file), "--cluster", str(cluster_file), "--ledger")
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].startswith("# fits: MiniMax-M2.5-5bit · 62 layers · context 196,608")
    assert any("tokens/s for one request" in line for line in lines)
    assert any(line.startswith("STAGE  NODE") for line in lines)
    assert any(line.startswith("█ weights  ▓ KV  ▒ scratch  ░ other  · headroom") for line in lines)
    bars = [line for line in lines if "▓" in line and line.endswith(" left")]
    assert len(bars) == 3
    assert any("headroom" in line for line in lines)


def test_above_the_position_limit(run: Run, profile_file: Path, cluster_file: Path) -> None:
    argv = ("plan", str(profile_file), "--cluster", str(cluster_file), "--context", "200000")
    outcome = run(*argv)
    assert outcome.code == 1
    assert "196,608" in outcome.out
    value = run(*argv, "--json").json
    assert (value["feasible"], value["kind"]) == (False, "above_position_limit")
    assert value["position_limit"] == 196_608


def test_too_small_a_cluster_names_what_is_missing(run: Run, profile_file: Path, tmp_path: Path) -> None:
    cluster = tmp_path / "small.json"
    node = {"name": "book", "ram_bytes": 36 * 10**9, "usable_bytes": 27 * 10**9, "bandwidth_gb_per_s": 410}
    cluster.write_text(json.dumps([node]))
    outcome = run("plan", str(profile_file), "--cluster", str(cluster))
    assert outcome.code == 1
    assert outcome.out.startswith("# does not fit")
    assert "MISSING" in outcome.out
    assert "▚" in outcome.out
    assert "usable memory to add: " in outcome.out
    assert "what decides: " in outcome.out
    assert "book" in outcome.out


@pytest.mark.parametrize(
    ("profile", "cluster", "message"),
    [
        ("{", "[]", "nodes is empty"),
        ("{", None, "cannot read"),
        ("{", "{", "cluster file"),
        ("{", '[{"name": "a", "ram_bytes": 1, "usable_bytes": 1, "bandwidth_gb_per_s": 1}]', "is not JSON"),
        ("[]", '[{"name": "a", "ram_bytes": 1, "usable_bytes": 1, "bandwidth_gb_per_s": 1}]', "profile"),
    ],
)
def test_bad_files(run: Run, tmp_path: Path, profile: str, cluster: str | None, message: str) -> None:
    (tmp_path / "m.profile.json").write_text(profile)
    if cluster is not None:
        (tmp_path / "c.json").write_text(cluster)
    outcome = run("plan", str(tmp_path / "m.profile.json"), "--cluster", str(tmp_path / "c.json"))
    assert outcome.code == 2
    assert message in outcome.err


def test_wishes_reach_the_planner(run: Run, profile_file: Path, cluster_file: Path) -> None:
    argv = ("plan", str(profile_file), "--cluster", str(cluster_file), "--context", "32768", "--json")
    value = run(*argv, "--exclude", "boo", "--objective", "latency", "--chunk", "256", "--stages", "2").json
    assert {stage["node_id"] for stage in value["stages"]} == {"studio", "studio2"}
    assert (value["objective"], value["prefill_chunk_tokens"]) == ("latency", 256)
    alone = run(*argv, "--exclude", "book", "--exclude", "studio2")
    assert alone.code == 1
    assert alone.json["feasible"] is False


def test_the_left_out_node_is_named(run: Run, profile_file: Path, cluster_file: Path) -> None:
    argv = ("plan", str(profile_file), "--cluster", str(cluster_file), "--context", "4096")
    assert "# left out: book" in run(*argv, "--exclude", "book").out
    assert "left out" not in run(*argv, "--stages", "3").out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--exclude", "nobody"], "exclude: there is no node 'nobody'; there are: book, studio, studio2"),
        (["--head", "stud"], "head: 'stud' means several nodes: studio, studio2"),
        (["--require", ""], "require: there is no node ''"),
        (["--kv-bits", "5"], "invalid choice"),
        (["--prefill-share", "1"], "'1' is not below 1"),
        (["--prefill-share", "nan"], "not a number"),
        (["--chunk", "0"], "'0' is below 1"),
        (["--decode-context", "-4"], "'-4' is below 0"),
        (["--objective", "speed"], "invalid choice"),
    ],
)
def test_bad_wishes(run: Run, profile_file: Path, cluster_file: Path, argv: list[str], message: str) -> None:
    outcome = run("plan", str(profile_file), "--cluster", str(cluster_file), *argv)
    assert outcome.code == 2
    assert outcome.out == ""
    assert message in outcome.err
