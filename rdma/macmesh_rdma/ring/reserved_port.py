"""Reserves a port now for a listener that binds it later."""

import ipaddress
import socket
from types import TracebackType
from typing import Self

from macmesh_rdma.errors import LocalAddressError


def require_loopback(host: str) -> str:
    """The host again, where it is a loopback address.

    Raises:
        LocalAddressError: it is a name or another address. The ``ring`` lane is plain text without any
            authentication, so it must not leave the machine.
    """
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise LocalAddressError(
            f"the ring lane is neither encrypted nor authenticated and binds loopback addresses only, "
            f"not {host!r}; use 127.0.0.1, or another transport"
        )
    return host


class ReservedPort:
    """Holds a port that the system chose, so that nobody else is given it.

    The socket is bound but never listens. With SO_REUSEADDR and SO_REUSEPORT on both, a second socket of the
    same user may bind the port and listen, and gets all connections.
    """

    def __init__(self, host: str) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind((host, 0))
        except OSError as error:
            self._socket.close()
            raise LocalAddressError(f"cannot bind a port on {host}: {error}") from error
        port: int = self._socket.getsockname()[1]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        """host:port, for the other stages."""

    def release(self) -> None:
        """Gives the port back; harmless when repeated."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()
