"""Addresses as text."""

from macmesh_rdma.errors import LocalAddressError


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port"; an IPv6 host may stand in brackets.

    Raises:
        LocalAddressError: it has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:  # noqa: PLR2004  ports are 16 bits
        raise LocalAddressError(f"{address!r} is no host:port")
    return host.removeprefix("[").removesuffix("]"), int(port)
