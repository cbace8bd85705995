"""Does anybody listen there? A TCP connection that is begun and given up, to tell a dead daemon from a silent one.

gRPC cannot be asked this: while a channel waits before it connects again, it repeats what it was told last time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from macmesh_daemon.config import split_address

if TYPE_CHECKING:
    from collections.abc import Iterable

#: One address has refused; how much longer the others have to accept. Above a round trip on a local network.
GRACE_SECONDS = 0.02

Knocked = Literal["accepted", "refused", "silent"]


async def knock(addresses: Iterable[str], deadline_seconds: float) -> Knocked:
    """Begin a connection to every address of one machine, and say what came of it.

    A machine refuses where the kernel answers and no process listens. Its other addresses may well be out of
    reach from here, so one that refuses speaks for all, unless another one accepts within a moment.

    Args:
        addresses: host:port, an IPv6 host in brackets. They must be the machine's own, as it told them last: one
            that it had once may be another machine's today.
        deadline_seconds: For all of them together.

    Returns:
        "accepted" where anything listens at one of them, else "refused" where one said that nothing does, else
        "silent", also where nothing is known or can be sent.
    """
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline_seconds
    found: Knocked = "silent"
    async with asyncio.TaskGroup() as group:
        waiting = {group.create_task(_knock_at(a), name=f"knock {a}") for a in set(addresses)}
        while waiting and (left := until - loop.time()) > 0:
            done, waiting = await asyncio.wait(waiting, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            results = {task.result() for task in done}
            if "accepted" in results:
                found = "accepted"
                break
            if "refused" in results and found == "silent":
                found, until = "refused", min(until, loop.time() + GRACE_SECONDS)
        for task in waiting:
            task.cancel()
    return found


async def _knock_at(address: str) -> Knocked:
    try:
        host, port = split_address(address)
        _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return "refused"
    except (OSError, ValueError):
        return "silent"
    writer.transport.abort()
    return "accepted"
