"""Looking for a cluster that takes new nodes, by a machine that belongs to none and announces nothing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zeroconf import IPVersion, ServiceStateChange
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from macmesh_daemon.discovery.base import join_address
from macmesh_daemon.discovery.book import MAX_CANDIDATES
from macmesh_daemon.discovery.interfaces import current_interfaces
from macmesh_daemon.discovery.session import SERVICE_TYPE
from macmesh_daemon.discovery.txt import MAX_FOREIGN_TXT_BYTES, decode_txt
from macmesh_daemon.identity import is_node_id

if TYPE_CHECKING:
    from collections.abc import Sequence

_RESOLVE_TIMEOUT_MS = 3000
_ASK_AGAIN_SECONDS = 3.0
_MAX_ADDRESSES = 8


async def find_join_door(
    cluster_prefix: str, issuer_node_id: str, *, interfaces: Sequence[str] = (), deadline_seconds: float
) -> tuple[str, ...]:
    """Addresses (``host:port``) at which a certain node says that its join door is open.

    What is found is a hint: whoever joins checks who answers.

    Args:
        cluster_prefix: First eight hex digits of the cluster's hash.
        issuer_node_id: The node that issued the token.
        interfaces: Names or addresses to use; see ``choose_interfaces``.
        deadline_seconds: How long to look.

    Raises:
        TimeoutError: It did not announce itself in time.
        OSError: mDNS does not work here.
    """
    choice = await current_interfaces(interfaces)
    if not choice.addresses:
        raise OSError("there is no network interface to look on")
    zeroconf = AsyncZeroconf(
        interfaces=list(choice.texts), ip_version=IPVersion.V6Only if choice.is_ipv6 else IPVersion.V4Only
    )
    seen: asyncio.Queue[str] = asyncio.Queue(MAX_CANDIDATES)

    def on_change(zeroconf: Any, service_type: str, name: str, state_change: ServiceStateChange) -> None:
        # The library calls with exactly these keyword names.
        del zeroconf, service_type
        instance = name.removesuffix(f".{SERVICE_TYPE}")
        if state_change is not ServiceStateChange.Removed and instance == issuer_node_id and not seen.full():
            seen.put_nowait(instance)

    if not is_node_id(issuer_node_id):
        raise ValueError(f"{issuer_node_id!r} is not a node id")
    try:
        async with asyncio.timeout(deadline_seconds):
            await zeroconf.zeroconf.async_wait_for_start()
            while True:
                # The library's browser asks four times and then no more: a new one asks again.
                browser = AsyncServiceBrowser(zeroconf.zeroconf, [SERVICE_TYPE], handlers=[on_change])
                try:
                    async with asyncio.timeout(_ASK_AGAIN_SECONDS):
                        while True:
                            found = await _resolve(zeroconf, await seen.get(), cluster_prefix)
                            if found:
                                return found
                except TimeoutError:
                    continue
                finally:
                    await browser.async_cancel()
    finally:
        await zeroconf.async_close()


async def _resolve(zeroconf: AsyncZeroconf, instance: str, cluster_prefix: str) -> tuple[str, ...]:
    info = AsyncServiceInfo(SERVICE_TYPE, f"{instance}.{SERVICE_TYPE}")
    if not await info.async_request(zeroconf.zeroconf, _RESOLVE_TIMEOUT_MS):
        return ()
    if len(info.text) > MAX_FOREIGN_TXT_BYTES:
        return ()
    hints = decode_txt(info.properties, instance)
    if hints is None or hints.cluster_prefix != cluster_prefix or not hints.join_port:
        return ()
    return tuple(join_address(a, hints.join_port) for a in info.parsed_scoped_addresses()[:_MAX_ADDRESSES])
