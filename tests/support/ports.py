"""Ports for what listens on this machine some time after they were found free."""

import itertools
import os
import random
import socket
from collections.abc import Iterator

_FIRST, _EACH, _PROCESSES = 12_000, 1_500, 8


def _own() -> Iterator[int]:
    """Ports that no other process of this run takes; below those that systems give out by themselves."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _PROCESSES
    mine = range(_FIRST + number * _EACH, _FIRST + (number + 1) * _EACH)
    # Where the last run has begun, connections may linger.
    start = random.randrange(_EACH)  # noqa: S311  no secret
    return itertools.cycle([*mine[start:], *mine[:start]])


_PORTS = _own()


def free_ports(count: int) -> list[int]:
    """So many, on which nobody listens; none of them is given again soon."""
    found: list[int] = []
    while len(found) < count:
        port = next(_PORTS)
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
    return found
