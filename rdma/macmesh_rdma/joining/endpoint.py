"""Where a worker's tensor lanes can be reached, as one string."""

import dataclasses
import ipaddress
import json
from typing import Self

from macmesh_rdma.addresses import split_address
from macmesh_rdma.errors import LocalAddressError

MOST_ENCODED_CHARACTERS = 1024
MOST_UNIX_PATH_BYTES = 103
"""What the smallest `sockaddr_un` (that of macOS) holds, less its closing zero."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where one rank listens.

    Attributes:
        host_id: Names the machine; two ranks of one machine have the same. Empty: not told.
        unix_path: Absolute path of its Unix socket; empty where it has none.
        tcp_address: host:port, the host a literal IPv4 or IPv6 address; IPv6 in brackets.

    Raises:
        LocalAddressError: a field is not what it should be; the message names it.
    """

    host_id: str
    unix_path: str
    tcp_address: str

    def __post_init__(self) -> None:
        if len(self.host_id) > 128 or not self.host_id.isprintable():  # noqa: PLR2004  a name, not a text
            raise LocalAddressError(f"host_id {self.host_id[:40]!r} is no name of up to 128 characters")
        if self.unix_path and not (
            self.unix_path.startswith("/")
            and "\0" not in self.unix_path
            and _bytes(self.unix_path) <= MOST_UNIX_PATH_BYTES
        ):
            raise LocalAddressError(
                f"unix_path {self.unix_path[:120]!r} is no absolute path of up to {MOST_UNIX_PATH_BYTES} bytes"
            )
        self.host_and_port  # noqa: B018  checks it

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Host and port of the TCP address.

        Raises:
            LocalAddressError: it is none.
        """
        try:
            host, port = split_address(self.tcp_address)
            bare = ipaddress.ip_address(host)
        except (LocalAddressError, ValueError) as error:
            raise LocalAddressError(
                f"tcp_address {self.tcp_address[:80]!r} is no literal address and port"
            ) from error
        if (bare.version == 6) != self.tcp_address.startswith("["):  # noqa: PLR2004  the protocol's number
            raise LocalAddressError(
                f"tcp_address {self.tcp_address[:80]!r}: an IPv6 address, and no other, stands in brackets"
            )
        return host, port

    def encode(self) -> str:
        """The endpoint as compact JSON."""
        fields = {"host": self.host_id, "unix": self.unix_path, "tcp": self.tcp_address}
        return json.dumps(fields, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Reads what `encode` wrote.

        Raises:
            LocalAddressError: it is something else; the message names the field.
        """
        if len(text) > MOST_ENCODED_CHARACTERS:
            raise LocalAddressError(f"an endpoint of {len(text)} characters is too long")
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise LocalAddressError(f"{text[:80]!r} is no endpoint")
        names = {"host": "host_id", "unix": "unix_path", "tcp": "tcp_address"}
        if unknown := fields.keys() - names.keys():
            raise LocalAddressError(f"an endpoint has no field {min(unknown)[:40]!r}")
        values: dict[str, str] = {}
        for key, name in names.items():
            value = fields.get(key)
            if not isinstance(value, str):
                raise LocalAddressError(f"{name} is {str(value)[:40]!r} in an endpoint; it must be text")
            values[name] = value
        return cls(**values)


def _bytes(path: str) -> int:
    try:
        return len(path.encode())
    except UnicodeEncodeError:
        return MOST_UNIX_PATH_BYTES + 1
