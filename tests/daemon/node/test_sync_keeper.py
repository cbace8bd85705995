import json
import plistlib
from pathlib import Path

import pytest

from macmesh_daemon.node.sync_keeper import RESULT_FILE_NAME, SyncKeeper, sync_platform
from macmesh_rdma.sync.mode import HopResult, SyncComparison, SyncPlatform
from macmesh_rdma.sync.quarantine import FILE_NAME, clear_quarantine

MAC = SyncPlatform("darwin", 26, "Apple M3 Ultra", "25C56", "0.32.4")
GOOD = SyncComparison(HopResult("passed", 180, 200), HopResult("passed", 4, 8))
HUNG = SyncComparison(HopResult("passed", 180, 200), HopResult("hung", detail="killed"))


class Compare:
    """A self-test that counts its runs."""

    def __init__(self, result: SyncComparison = GOOD) -> None:
        self.result = result
        self.runs = 0

    async def __call__(self) -> SyncComparison:
        self.runs += 1
        return self.result


def keeper(folder: Path, compare: Compare, platform: SyncPlatform = MAC) -> SyncKeeper:
    return SyncKeeper(folder, platform, compare=compare, unix_now=lambda: 1e9)


async def test_auto_is_safe_until_the_self_test_has_passed_which_runs_once(tmp_path: Path) -> None:
    compare = Compare()
    first = keeper(tmp_path, compare)
    assert (await first.decide("auto")).reason == "the self-test of fast has not run"
    await first.prepare("auto")
    assert (await first.decide("auto")).mode == "fast"
    again = keeper(tmp_path, compare)
    await again.prepare("auto")
    assert (await again.decide("auto")).mode == "fast"
    assert compare.runs == 1
    updated = keeper(tmp_path, compare, SyncPlatform("darwin", 26, "Apple M3 Ultra", "25D1", "0.32.4"))
    await updated.prepare("auto")
    assert compare.runs == 2
    assert again.health() == ()


@pytest.mark.parametrize("requested", ["safe", "fast", "turbo", ""])
async def test_nothing_is_tested_where_it_decides_nothing(requested: str, tmp_path: Path) -> None:
    compare = Compare()
    await keeper(tmp_path, compare).prepare(requested)
    await keeper(tmp_path, compare, SyncPlatform("linux")).prepare("auto")
    assert compare.runs == 0
    assert (await keeper(tmp_path, compare).decide(requested)).mode == (
        "fast" if requested == "fast" else "safe"
    )


async def test_a_hang_while_fast_ends_fast_on_this_node_until_it_is_cleared(tmp_path: Path) -> None:
    node = keeper(tmp_path, Compare())
    assert (await node.decide("fast")).mode == "fast"
    await node.note_hang("its loop did not turn")
    decision = await node.decide("fast")
    assert decision.mode == "safe"
    assert "its loop did not turn" in decision.reason
    (line,) = node.health()
    assert line.startswith("synchronisation is safe, as fast is in quarantine: its loop did not turn")
    assert str(tmp_path / FILE_NAME) in line
    assert (await keeper(tmp_path, Compare()).decide("auto")).mode == "safe"
    clear_quarantine(tmp_path / FILE_NAME)
    assert (await node.decide("fast")).mode == "fast"
    assert node.health() == ()


async def test_a_hang_in_the_self_test_is_a_hang(tmp_path: Path) -> None:
    compare = Compare(HUNG)
    node = keeper(tmp_path, compare)
    await node.prepare("auto")
    assert "self-test" in (await node.decide("auto")).reason
    later = keeper(tmp_path, compare)
    await later.prepare("auto")
    assert compare.runs == 1
    assert (await later.decide("fast")).mode == "safe"


async def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    node = keeper(tmp_path / "no-such-folder", Compare())
    await node.prepare("auto")
    assert (await node.decide("auto")).mode == "fast"
    await node.note_hang("it hung")


@pytest.mark.parametrize(
    "change", [{"version": 2}, {"key": "other"}, {"safe": None}, {"fast": {"outcome": "great"}}, {"safe": {}}]
)
async def test_a_kept_result_that_cannot_be_believed_is_measured_anew(
    change: dict[str, object], tmp_path: Path
) -> None:
    compare = Compare()
    await keeper(tmp_path, compare).prepare("auto")
    path = tmp_path / RESULT_FILE_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    await keeper(tmp_path, compare).prepare("auto")
    assert compare.runs == 2


def test_the_platform_of_a_mac_is_read_from_its_version_file(tmp_path: Path) -> None:
    path = tmp_path / "SystemVersion.plist"
    path.write_bytes(plistlib.dumps({"ProductVersion": "26.3.1", "ProductBuildVersion": "25D125"}))
    found = sync_platform(chip="Apple M4", mlx_version="0.32.4", system="darwin", version_file=path)
    assert found == SyncPlatform("darwin", 26, "Apple M4", "25D125", "0.32.4")
    assert found.has_fast
    for content in (b"", b"<plist>", plistlib.dumps({"ProductVersion": "x"}), plistlib.dumps([])):
        path.write_bytes(content)
        broken = sync_platform(chip="Apple M4", mlx_version="0.32.4", system="darwin", version_file=path)
        assert not broken.has_fast
    assert not sync_platform(chip="x86", mlx_version="0.32.4", system="linux").has_fast
