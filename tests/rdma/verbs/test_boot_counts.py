"""The counts of one boot of the machine."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from macmesh_rdma.verbs.boot_counts import BootCounts, boot_id, counts_text, read_counts


def test_counts_hold_for_one_boot(tmp_path: Path) -> None:
    path = tmp_path / "counts"
    assert read_counts(path, "first") == BootCounts("first")
    counts = BootCounts("first").plus(setups=1, made=6).plus(freed=5)
    path.write_bytes(counts_text(counts))
    assert read_counts(path, "first") == BootCounts("first", 1, 6, 5)
    assert read_counts(path, "second") == BootCounts("second")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"version": 1}', '{"version": 1, "boot_id": "b", "setups": null}']
)
def test_a_file_that_cannot_be_read_counts_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "counts").write_text(text)
    assert read_counts(tmp_path / "counts", "b") == BootCounts("b")


async def test_the_system_names_its_start() -> None:
    async def sysctl(command: Sequence[str]) -> str:
        assert command[-1] == "kern.bootsessionuuid"
        return "A1B2\n"

    async def broken(command: Sequence[str]) -> str:
        raise OSError(command[0])

    assert await boot_id(runner=sysctl, platform="darwin") == "A1B2"
    assert await boot_id(runner=broken, platform="darwin") == "unknown"
