"""Stand-ins for the RDMA devices of the demo's nodes, with a cable between every two of them."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from macmesh_daemon.demo.errors import LocalDemoSetupError
from macmesh_rdma.errors import TransportError
from macmesh_rdma.testing.fakeverbs import FakeFabric, full_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, slots=True)
class DemoFabric:
    """What the demo needs to know of it.

    Attributes:
        environments: What the environment of each daemon has; empty where there is no fabric.
        cables: Between every two nodes.
    """

    environments: tuple[Mapping[str, str], ...] = ()
    cables: int = 0


@contextlib.contextmanager
def demo_fabric(transport: str, nodes: int) -> Iterator[DemoFabric]:
    """The fabric that a transport needs; none but for "verbs".

    Raises:
        LocalDemoSetupError: It cannot be had.
    """
    if transport != "verbs":
        yield DemoFabric()
        return
    hosts = [f"node{number + 1}" for number in range(nodes)]
    with contextlib.ExitStack() as stack:
        try:
            fabric = stack.enter_context(FakeFabric(full_mesh(hosts)))
        except TransportError as error:
            raise LocalDemoSetupError(f"there are no stand-ins for RDMA devices: {error}") from error
        yield DemoFabric(tuple(fabric.environment(host) for host in hosts), cables=1)
