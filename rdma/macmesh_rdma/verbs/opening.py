"""Opens links over RDMA devices: the control sockets stand already. Imports mlx."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import mlx.core  # noqa: F401  before the native module

from macmesh_rdma import _group
from macmesh_rdma.errors import (
    LocalProviderError,
    RemotePeerLostError,
    RemoteProviderError,
    RemoteTimeoutError,
    TransportError,
)
from macmesh_rdma.joining.joining_peer import close_all
from macmesh_rdma.joining.peer_links import VerbsLane
from macmesh_rdma.verbs.facts import VerbsFacts, facts_of
from macmesh_rdma.verbs.settings import VerbsSettings

SILENT = "it carries nothing, although the peer answers"
"""How the native links tell of a cable that is silent, in the middle of the reason for which they end."""


@dataclasses.dataclass(frozen=True)
class VerbsCounts:
    """What this process has made and freed of a driver's scarce things since its start."""

    queue_pairs_made: int = 0
    queue_pairs_freed: int = 0


def verbs_counts() -> VerbsCounts:
    """Of this process, so far."""
    counted = _group.verbs_counts()
    return VerbsCounts(counted["queue_pairs_made"], counted["queue_pairs_freed"])


def list_devices(library: str) -> list[dict[str, Any]]:
    """The devices that the verbs library lists, as the native module tells them.

    Raises:
        LocalProviderError: the library cannot be had or refuses; the message says what to do.
    """
    try:
        return _group.verbs_devices(library or None)
    except (OSError, RuntimeError, ValueError) as error:
        raise LocalProviderError(str(error)) from error


class VerbsOpener:
    """Opens links over this machine's RDMA devices; lists those once, and only where one is opened.

    Args:
        settings: of this rank.
        lanes: links to each peer.
        deadline: time of `time.monotonic`.
    """

    def __init__(self, settings: VerbsSettings, lanes: int, deadline: float) -> None:
        self._settings = settings
        self._links_per_device = lanes * settings.peers_per_device
        self._deadline = deadline
        self._facts: VerbsFacts | None = None

    def open(self, lane: VerbsLane, peer: int, options: "_group.LinkOptions") -> "_group.Link":
        """The link of one lane; takes its descriptors over, also where it raises.

        The peer must call it at the same time. Both ends test each cable with a pattern in both directions first.

        Args:
            lane: the control socket.
            peer: its rank.
            options: of the link.

        Raises:
            LocalProviderError: a device of ours cannot be used, or has not got what the link needs.
            RemotePeerLostError: the peer has gone.
            RemoteProviderError: a cable damages what it carries, or carries nothing.
            RemoteTimeoutError: it took too long.
        """
        with contextlib.ExitStack() as undo:
            undo.callback(close_all, lane.descriptors())
            if self._facts is None:
                self._facts = machine_facts(self._settings)
            cables = [_cable(self._facts, name, peer) for name in self._settings.devices.get(peer, ())]
            if not cables:
                raise LocalProviderError(
                    f"no cable for links over RDMA devices leads to rank {peer}", peer=peer
                )
            undo.pop_all()
        close_all(lane.beside)
        given = _group.VerbsOptions(
            library=self._settings.library_path,
            build=self._settings.os_build,
            links_per_device=self._links_per_device,
        )
        with verbs_errors(peer, "setting up the link"):
            return _group.verbs_link(lane.control, cables, options, given, self._left)

    @property
    def _left(self) -> float:
        return max(self._deadline - time.monotonic(), 0.1)


def machine_facts(settings: VerbsSettings) -> VerbsFacts:
    """The devices of this machine as they are now.

    Raises:
        LocalProviderError: the library cannot be had or refuses.
    """
    return facts_of(list_devices(settings.library_path))


@contextlib.contextmanager
def verbs_errors(peer: int, what: str) -> Iterator[None]:
    """Turns what a link over RDMA devices raises into our errors."""
    told = f"{what} to rank {peer} over RDMA devices"
    try:
        yield
    except TransportError:
        raise
    except TimeoutError as error:
        # Of a busy machine as well as of a bad cable; of that one the link tells itself.
        raise RemoteTimeoutError(f"{told}: {error}", peer=peer) from error
    except ConnectionError as error:
        if SILENT in str(error):
            raise RemoteProviderError(f"{told}: {error}", peer=peer) from error
        raise RemotePeerLostError(f"{told}: {error}", peer=peer) from error
    except (OSError, ValueError) as error:
        raise LocalProviderError(f"{told}: {error}", peer=peer) from error
    except RuntimeError as error:
        raise RemoteProviderError(f"{told}: {error}", peer=peer) from error


def _cable(facts: VerbsFacts, name: str, peer: int) -> "_group.VerbsCable":
    port = facts.port_of(name)
    if port is None:
        listed = ", ".join(port.device for port in facts.ports) or "none"
        raise LocalProviderError(
            f"the verbs library lists no device {name} for the links to rank {peer}; it lists {listed}",
            peer=peer,
        )
    if port.refused:
        raise LocalProviderError(f"the links to rank {peer}: {port.refused}", peer=peer)
    return _group.VerbsCable(device=name, port=port.number, gid_index=port.gid_index)
