"""Fake daemons for the SDK's tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from macmesh.testing import FakeDaemon, ThreadedFakeDaemon


@pytest.fixture
def socket_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("s") / "d.sock"


@pytest.fixture
def threaded(socket_file: Path) -> Iterator[ThreadedFakeDaemon]:
    with ThreadedFakeDaemon(socket_file) as daemon:
        yield daemon


@pytest.fixture
async def fake(socket_file: Path) -> AsyncIterator[FakeDaemon]:
    async with FakeDaemon(socket_file) as daemon:
        yield daemon
