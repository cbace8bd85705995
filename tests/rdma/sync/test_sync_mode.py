import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.sync.mode import (
    HopResult,
    SyncComparison,
    SyncDecision,
    SyncPlatform,
    decide,
    needs_self_test,
)
from macmesh_rdma.sync.quarantine import (
    FILE_NAME,
    add_to_quarantine,
    clear_quarantine,
    quarantine_reason,
)
from macmesh_rdma.sync.self_test import compare_sync_modes, parse_result, run_self_test

MAC = SyncPlatform("darwin", 26, "Apple M3 Ultra", "25C56", "0.32.4")
OLD_MAC = SyncPlatform("darwin", 14, "Apple M1", "23A1", "0.32.4")
LINUX = SyncPlatform("linux", mlx_version="0.32.4")


def comparison(safe_us: float, fast_us: float) -> SyncComparison:
    return SyncComparison(HopResult("passed", safe_us, safe_us), HopResult("passed", fast_us, fast_us))


HUNG = SyncComparison(HopResult("passed", 180, 180), HopResult("hung", detail="killed after 20 s"))


@pytest.mark.parametrize(
    ("requested", "platform", "quarantine", "found", "mode", "told"),
    [
        ("safe", MAC, "", comparison(180, 4), "safe", "asked for"),
        ("fast", MAC, "", None, "fast", "asked for"),
        ("fast", MAC, "it hung", None, "safe", "quarantine: it hung"),
        ("fast", OLD_MAC, "", None, "safe", "macOS 15"),
        ("fast", LINUX, "", None, "safe", "Metal"),
        ("auto", LINUX, "", comparison(180, 4), "safe", "Metal"),
        ("auto", MAC, "", None, "safe", "has not run"),
        ("auto", MAC, "", comparison(180, 4), "fast", "4 µs per hop against 180 µs"),
        ("auto", MAC, "", comparison(180, 150), "safe", "gains too little"),
        ("auto", MAC, "", HUNG, "safe", "fast hung in its self-test: killed after 20 s"),
        ("auto", MAC, "it hung", comparison(180, 4), "safe", "quarantine"),
        (
            "auto",
            MAC,
            "",
            SyncComparison(HopResult("wrong", detail="x"), HopResult("passed")),
            "safe",
            "wrong",
        ),
    ],
)
def test_decisions(
    requested: str,
    platform: SyncPlatform,
    quarantine: str,
    found: SyncComparison | None,
    mode: str,
    told: str,
) -> None:
    decision = decide(requested, platform, quarantine=quarantine, comparison=found)  # type: ignore[arg-type]
    assert decision.mode == mode
    assert told in decision.reason
    assert decision.environment == {"MLX_METAL_FAST_SYNCH": "1" if mode == "fast" else "0"}
    assert decision.attention == ("quarantine" in told or "in its self-test" in decision.reason)


@given(
    st.sampled_from(["safe", "fast", "auto"]),
    st.sampled_from([MAC, OLD_MAC, LINUX]),
    st.sampled_from(["", "hung"]),
    st.none() | st.builds(comparison, st.floats(0.1, 1e4), st.floats(0.1, 1e4)),
)
def test_fast_is_never_taken_without_metal_out_of_quarantine_or_unasked(
    requested: str, platform: SyncPlatform, quarantine: str, found: SyncComparison | None
) -> None:
    decision = decide(requested, platform, quarantine=quarantine, comparison=found)  # type: ignore[arg-type]
    if decision.mode == "fast":
        assert requested != "safe"
        assert platform is MAC
        assert not quarantine
        assert requested == "fast" or found is not None
    assert needs_self_test(requested, platform, quarantine) == (  # type: ignore[arg-type]
        requested == "auto" and platform is MAC and not quarantine
    )
    assert isinstance(decision, SyncDecision)


def test_quarantine_is_kept_for_its_key_until_it_is_cleared(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    assert quarantine_reason(path, MAC.key) == ""
    add_to_quarantine(path, MAC.key, "it hung in epoch 1.2.3", 1e9)
    add_to_quarantine(path, MAC.key, "it hung again", 2e9)
    add_to_quarantine(path, "another", "other", 2e9)
    assert quarantine_reason(path, MAC.key) == "it hung in epoch 1.2.3"
    assert json.loads(path.read_text())["entries"][MAC.key]["unix_seconds"] == 1e9
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == [FILE_NAME]
    # An update of the system or of mlx ends it.
    assert quarantine_reason(path, SyncPlatform("darwin", 26, "Apple M3 Ultra", "25C57", "0.32.4").key) == ""
    assert quarantine_reason(path, SyncPlatform("darwin", 26, "Apple M3 Ultra", "25C56", "0.32.5").key) == ""
    clear_quarantine(path)
    clear_quarantine(path)
    assert quarantine_reason(path, MAC.key) == ""


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"\xff\xfe", b'{"version": 2, "entries": {}}', b'{"version": 1, "entries": {"x": 1}}'],
)
def test_a_file_that_cannot_be_read_counts_as_quarantine_and_can_be_replaced(
    content: bytes, tmp_path: Path
) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(content)
    assert "remove it to try fast again" in quarantine_reason(path, MAC.key)
    add_to_quarantine(path, MAC.key, "it hung", 1e9)
    assert quarantine_reason(path, MAC.key) == "it hung"
    assert quarantine_reason(path, "another") == ""


def test_a_quarantine_that_cannot_be_written_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "no-such-folder" / FILE_NAME
    with pytest.raises(OSError, match="No such file"):
        add_to_quarantine(path, MAC.key, "it hung", 1e9)


@pytest.mark.parametrize(
    ("output", "outcome"),
    [
        ('{"chained_us": 12.5, "evaluated_us": 20, "wrong": ""}', "passed"),
        ('{"chained_us": 12.5, "evaluated_us": 20, "wrong": "expected 4, got 3"}', "wrong"),
        ("", "failed"),
        ('{"chained_us": null}', "failed"),
        ("[]", "failed"),
    ],
)
def test_results_of_children(output: str, outcome: str) -> None:
    assert parse_result(output).outcome == outcome


async def run_child(code: str, deadline_seconds: float = 10.0) -> HopResult:
    return await run_self_test(
        environment={}, deadline_seconds=deadline_seconds, command=[sys.executable, "-S", "-c", code]
    )


async def test_children_that_hang_crash_or_do_not_start() -> None:
    hung = await run_child("import time; time.sleep(60)", 0.2)
    assert hung == HopResult("hung", detail="it was killed after 0.2 s")
    crashed = await run_child("import sys; sys.exit('no GPU')")
    assert crashed == HopResult("failed", detail="exit status 1 and 1: no GPU")
    missing = await run_self_test(environment={}, command=["/no/such/program"])
    assert missing.outcome == "failed"
    assert "could not be started" in missing.detail


async def test_fast_is_tried_only_where_safe_works_and_gets_its_own_environment() -> None:
    code = (
        "import os; fast = os.environ['MLX_METAL_FAST_SYNCH'] == '1'; "
        'print(\'{"chained_us": %d, "evaluated_us": 9, "wrong": ""}\' % (4 if fast else 180))'
    )
    both = await compare_sync_modes(command=[sys.executable, "-S", "-c", code])
    assert (both.safe.chained_us, both.fast.chained_us) == (180, 4)
    broken = await compare_sync_modes(command=[sys.executable, "-S", "-c", "raise SystemExit(3)"])
    assert broken.fast.detail == "not tried, as safe does not work"


def test_what_the_daemon_imports_brings_no_mlx() -> None:
    code = (
        "import sys, macmesh_rdma.control.socket_lane, macmesh_rdma.sync.quarantine, macmesh_rdma.sync.self_test, "
        "macmesh_rdma.jaccl.facts, macmesh_rdma.jaccl.choice, macmesh_rdma.jaccl.exchange, "
        "macmesh_rdma.testing.memory_control; "
        "sys.exit(any(name.split('.')[0] == 'mlx' for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0


@pytest.mark.process
async def test_hops_are_measured_over_mlxs_ring() -> None:
    result = await run_self_test(environment={"MLX_METAL_FAST_SYNCH": "0"}, hops=20)
    assert result.outcome == "passed", result
    assert 0 < result.chained_us < 1e6
    assert 0 < result.evaluated_us < 1e6
    assert "MLX_METAL_FAST_SYNCH" not in os.environ
