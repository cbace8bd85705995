"""Credentials of a remote client: what mutual TLS needs, as one JSON file.

Format of the file (``"format": "macmesh-credentials/1"``)::

    {"format": "macmesh-credentials/1", "ca_pem": "...", "certificate_pem": "...", "key_pem": "...",
     "server_name": "node.macmesh", "addresses": ["192.168.1.10:52415"]}

`addresses` is optional: nodes that the client may try when it is given no target.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from macmesh.errors import LocalCredentialsError

FORMAT: Final = "macmesh-credentials/1"

#: DNS name in the certificate of every node, beside ``<node_id>.node.macmesh``.
ANY_NODE_NAME: Final = "node.macmesh"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a remote client shows and trusts.

    Attributes:
        ca_pem: Certificate of the cluster's CA, PEM.
        certificate_pem: The client's certificate chain, PEM.
        key_pem: The client's private key, PEM. Never printed.
        server_name: DNS name that the server's certificate must carry: `ANY_NODE_NAME`, or
            ``<node_id>.node.macmesh`` for one certain node.
        addresses: ``host:port`` of nodes to try, best first.
    """

    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = field(repr=False)
    server_name: str = ANY_NODE_NAME
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is visibly not PEM.

        Raises:
            LocalCredentialsError: A part is not PEM.
        """
        for name, value in (
            ("ca_pem", self.ca_pem),
            ("certificate_pem", self.certificate_pem),
            ("key_pem", self.key_pem),
        ):
            if b"-----BEGIN " not in value:
                raise LocalCredentialsError(f"credentials: {name} holds no PEM block")

    @classmethod
    def from_file(cls, path: Path | str) -> "Credentials":
        """Read a credentials file.

        Raises:
            LocalCredentialsError: It cannot be read, others may read it too, it is not of this format, or misses
                a part.
        """
        try:
            mode = Path(path).stat().st_mode
            if mode & 0o077:
                raise LocalCredentialsError(
                    f"others may read the credentials file {path}, which holds a private key: chmod 600 it, or "
                    "have new ones issued where somebody may have read it"
                )
            data: Any = json.loads(Path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise LocalCredentialsError(f"cannot read the credentials file {path}: {error}") from error
        except json.JSONDecodeError as error:
            raise LocalCredentialsError(f"the credentials file {path} is not JSON: {error}") from error
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise LocalCredentialsError(f'the credentials file {path} does not say "format": "{FORMAT}"')
        parts = ("ca_pem", "certificate_pem", "key_pem")
        missing = [name for name in parts if not isinstance(data.get(name), str)]
        if missing:
            raise LocalCredentialsError(f"the credentials file {path} misses {', '.join(missing)}")
        return cls(
            **{name: data[name].encode("ascii", "replace") for name in parts},
            server_name=str(data.get("server_name") or ANY_NODE_NAME),
            addresses=tuple(str(address) for address in data.get("addresses") or ()),
        )

    def to_json(self) -> str:
        """The content of a credentials file. It holds the key: write it with mode 0600."""
        return json.dumps(
            {
                "format": FORMAT,
                "ca_pem": self.ca_pem.decode("ascii"),
                "certificate_pem": self.certificate_pem.decode("ascii"),
                "key_pem": self.key_pem.decode("ascii"),
                "server_name": self.server_name,
                "addresses": list(self.addresses),
            },
            indent=1,
        )
