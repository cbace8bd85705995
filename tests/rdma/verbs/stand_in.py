"""In place of the native module's part for RDMA devices: the control socket carries the bytes itself."""

import os
from typing import Any

import mlx.core  # noqa: F401  before the native module
import pytest

from macmesh_rdma import _group
from macmesh_rdma.verbs import opening


class StandIn:
    """Takes what `_group` takes; its links are those of TCP over the control socket.

    Attributes:
        devices: What the library lists.
        made: Arguments of each link: its cables as (device, port, index of the GID), and the options.
        error: Raised in place of making a link, once the descriptor is taken over.
    """

    def __init__(self, devices: list[dict[str, Any]]) -> None:
        self.devices = devices
        self.made: list[tuple[list[tuple[str, int, int]], dict[str, Any]]] = []
        self.error: Exception | None = None
        self.asked: list[str | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(_group, name)

    def verbs_devices(self, library: str | None) -> list[dict[str, Any]]:
        self.asked.append(library)
        return self.devices

    def verbs_counts(self) -> dict[str, int]:
        return {"queue_pairs_made": len(self.made), "queue_pairs_freed": 0}

    @staticmethod
    def VerbsCable(*, device: str, port: int, gid_index: int) -> tuple[str, int, int]:  # noqa: N802  as the class
        return device, port, gid_index

    @staticmethod
    def VerbsOptions(*, library: str, build: str, links_per_device: int) -> dict[str, Any]:  # noqa: N802  as the class
        return {"library": library, "build": build, "links_per_device": links_per_device}

    def verbs_link(
        self,
        control: int,
        cables: list[tuple[str, int, int]],
        options: "_group.LinkOptions",
        verbs: dict[str, Any],
        deadline_seconds: float,
    ) -> "_group.Link":
        assert deadline_seconds > 0
        self.made.append((cables, verbs))
        if self.error is not None:
            os.close(control)
            raise self.error
        return _group.tcp_link(control, options)


def put_in_place(monkeypatch: pytest.MonkeyPatch, devices: list[dict[str, Any]]) -> StandIn:
    made = StandIn(devices)
    monkeypatch.setattr(opening, "_group", made)
    return made
