"""One life of the mDNS sockets: what ``MdnsDiscovery`` needs of python-zeroconf, and nothing else of it.

A session is thrown away and opened anew when it fails or when the address family changes. Its interface
exists so that the decisions above it can be tested in virtual time, and so that the library's habits stay
in one file.
"""

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from zeroconf import IPVersion, ServiceStateChange, current_time_millis
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from macmesh_daemon.discovery.base import Hints
from macmesh_daemon.discovery.interfaces import InterfaceChoice
from macmesh_daemon.discovery.txt import encode_txt

SERVICE_TYPE = "_macmesh._tcp.local."
_RESOLVE_TIMEOUT_MS = 3000


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What a node announces."""

    node_id: str
    #: TCP port of the node's gRPC server.
    port: int
    hints: Hints
    #: IP addresses to announce; empty: those of the interfaces that mDNS uses.
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResolvedService:
    """What a stranger announced, unchecked."""

    addresses: tuple[str, ...]
    port: int
    properties: Mapping[bytes, bytes | None]
    txt_bytes: int


#: Called with an instance name (without the service type) and whether it said goodbye.
SeenCallback = Callable[[str, bool], None]


class MdnsSession(Protocol):
    """The sockets, the announcement and the browser.

    Any method may raise ``OSError`` or the library's errors.
    """

    async def open(self, choice: InterfaceChoice, advertisement: Advertisement, seen: SeenCallback) -> None:
        """Bind, begin to browse, and announce."""
        ...

    async def rebind(self, choice: InterfaceChoice) -> None:
        """Go over to other addresses of the same family."""
        ...

    async def announce(self, advertisement: Advertisement) -> None:
        """Send the announcement, changed or not."""
        ...

    def browse(self) -> None:
        """Begin a new browser: it asks the network again and reports again what is known."""
        ...

    def heard_itself(self) -> bool:
        """Say whether the last announcement came back through the network interface."""
        ...

    async def resolve(self, instance: str) -> ResolvedService | None:
        """Return what an instance announced, None where it does not answer."""
        ...

    async def close(self) -> None:
        """Say goodbye and close the sockets. Safe in any state."""
        ...


class ZeroconfSession:
    """An ``MdnsSession`` on python-zeroconf."""

    def __init__(self) -> None:
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._info: AsyncServiceInfo | None = None
        self._choice = InterfaceChoice(())
        self._seen: SeenCallback | None = None
        self._announced_at_ms = 0.0

    async def open(self, choice: InterfaceChoice, advertisement: Advertisement, seen: SeenCallback) -> None:
        """See ``MdnsSession.open``."""
        self._seen = seen
        self._choice = choice
        self._zeroconf = AsyncZeroconf(
            interfaces=list(choice.texts),
            ip_version=IPVersion.V6Only if choice.is_ipv6 else IPVersion.V4Only,
        )
        await self._zeroconf.zeroconf.async_wait_for_start()
        self.browse()
        self._info = _service_info(advertisement, choice)
        self._announced_at_ms = current_time_millis()
        # The name is the hash of a key of ours: probing for another owner would only cost a second.
        sent = await self._zeroconf.async_register_service(self._info, cooperating_responders=True)
        await sent

    async def rebind(self, choice: InterfaceChoice) -> None:
        """See ``MdnsSession.rebind``."""
        self._choice = choice
        await self._opened().async_update_interfaces(list(choice.texts))

    async def announce(self, advertisement: Advertisement) -> None:
        """See ``MdnsSession.announce``."""
        self._info = _service_info(advertisement, self._choice)
        self._announced_at_ms = current_time_millis()
        sent = await self._opened().async_update_service(self._info)
        await sent

    def browse(self) -> None:
        """See ``MdnsSession.browse``."""
        if self._browser is not None:
            self._browser._async_cancel()  # noqa: SLF001  the public async_cancel only wraps it in a coroutine
        self._browser = AsyncServiceBrowser(
            self._opened().zeroconf, [SERVICE_TYPE], handlers=[self._on_change]
        )

    def heard_itself(self) -> bool:
        """See ``MdnsSession.heard_itself``."""
        if self._info is None:
            return False
        record = self._opened().zeroconf.cache.current_entry_with_name_and_alias(
            SERVICE_TYPE, self._info.name
        )
        return record is not None and record.created >= self._announced_at_ms

    async def resolve(self, instance: str) -> ResolvedService | None:
        """See ``MdnsSession.resolve``."""
        info = AsyncServiceInfo(SERVICE_TYPE, f"{instance}.{SERVICE_TYPE}")
        if not await info.async_request(self._opened().zeroconf, _RESOLVE_TIMEOUT_MS):
            return None
        return ResolvedService(
            addresses=tuple(info.parsed_scoped_addresses()),
            port=info.port or 0,
            properties=info.properties,
            txt_bytes=len(info.text),
        )

    async def close(self) -> None:
        """See ``MdnsSession.close``."""
        instance, self._zeroconf = self._zeroconf, None
        browser, self._browser = self._browser, None
        if instance is None:
            return
        try:
            if browser is not None:
                await browser.async_cancel()
            await instance.async_unregister_all_services()
        finally:
            await instance.async_close()

    def _opened(self) -> AsyncZeroconf:
        if self._zeroconf is None:
            raise OSError("the mDNS session is closed")
        return self._zeroconf

    def _on_change(
        self, zeroconf: Any, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        # The library calls with exactly these keyword names.
        del zeroconf, service_type
        if self._seen is not None and name.endswith(f".{SERVICE_TYPE}"):
            gone = state_change is ServiceStateChange.Removed
            self._seen(name.removesuffix(f".{SERVICE_TYPE}"), gone)


def _service_info(advertisement: Advertisement, choice: InterfaceChoice) -> AsyncServiceInfo:
    addresses = advertisement.addresses or choice.texts
    return AsyncServiceInfo(
        SERVICE_TYPE,
        f"{advertisement.node_id}.{SERVICE_TYPE}",
        addresses=[ipaddress.ip_address(address).packed for address in addresses],
        port=advertisement.port,
        properties=encode_txt(advertisement.node_id, advertisement.hints),
        server=f"{advertisement.node_id}.local.",
    )
