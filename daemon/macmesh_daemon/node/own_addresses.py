"""Where others reach this node: follows the machine's network interfaces."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from macmesh_daemon.clock import sleep_or_event
from macmesh_daemon.discovery import join_address
from macmesh_daemon.logs import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from macmesh_daemon.clock import Clock

_log = get_logger(part="addresses")

#: How often the interfaces are looked at; nothing portable tells of their changes.
POLL_SECONDS = 2.0


class OwnAddresses:
    """This node's addresses now.

    Args:
        hosts: The machine's addresses, as read at the start.
        port: Where the node listens.
        read: Reads them again; see `own_hosts`.
        changed: Called after every change.
    """

    def __init__(
        self,
        hosts: tuple[str, ...],
        port: int,
        *,
        read: Callable[[], Awaitable[tuple[str, ...]]],
        clock: Clock,
        changed: Callable[[], None],
    ) -> None:
        self._hosts = hosts
        self._port = port
        self._read = read
        self._clock = clock
        self._changed = changed
        self._look_now = asyncio.Event()

    @property
    def hosts(self) -> tuple[str, ...]:
        """IP addresses."""
        return self._hosts

    @property
    def current(self) -> tuple[str, ...]:
        """host:port."""
        return tuple(join_address(host, self._port) for host in self._hosts)

    def refresh(self) -> None:
        """Look now: after waking up."""
        self._look_now.set()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await sleep_or_event(self._clock, POLL_SECONDS, self._look_now)
            try:
                hosts = await self._read()
            except OSError as error:
                _log.warning("interfaces cannot be read", error=str(error))
                continue
            # Without any address nobody is there to be told; the old ones are the best guess for later.
            if not hosts or hosts == self._hosts:
                continue
            _log.info("own addresses changed", before=self._hosts, now=hosts)
            self._hosts = hosts
            self._changed()
