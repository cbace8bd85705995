"""Fixtures of the transport's tests."""

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from macmesh_rdma import named_memory, shared_memory

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  only looked at


@dataclass
class Names:
    """Names of shared memory that this process has made; others on this machine make some, too."""

    made: list[str] = field(default_factory=list)

    def left(self) -> list[str]:
        """Those that are still there, where the system shows them."""
        return [name for name in self.made if (SHARED_MEMORY / name).exists()]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()

    def token_hex(count: int) -> str:
        token = secrets.token_hex(count)
        made.made.append(f"macmesh-{token}")
        return token

    for module in (named_memory, shared_memory):
        monkeypatch.setattr(module, "secrets", SimpleNamespace(token_hex=token_hex))
    return made
