"""Every run of real processes is checked by its event logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from macmesh_daemon.eventlog.reader import FILE_NAME
from support.mesh import check_logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(autouse=True)
def event_logs_keep_the_invariants(tmp_path: Path) -> Iterator[None]:
    """Check the logs of every node that a test ran below its folder."""
    yield
    folders = sorted({path.parent for path in tmp_path.rglob(FILE_NAME)})
    if folders:
        check_logs(folders)
