"""Who a certificate says its holder is: a node, or a client with one of three roles."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from macmesh_daemon.identity.certificates import node_dns_name
from macmesh_daemon.identity.errors import RemoteUntrustedError
from macmesh_daemon.identity.keys import node_id_of

if TYPE_CHECKING:
    from collections.abc import Iterable

#: A client's certificate carries ``macmesh://client/<role>/<client id>`` as its only alternative name.
_CLIENT_URI = re.compile(r"macmesh://client/(user|admin|observer)/([a-z2-7]{26})")


class Role(enum.StrEnum):
    """What a caller is, which decides what it may do."""

    #: Whoever may open the node's Unix socket: the user that runs the daemon.
    LOCAL = "local"
    #: A node of the cluster.
    NODE = "node"
    #: A remote client that may change the cluster.
    ADMIN = "admin"
    #: A remote client that may generate.
    USER = "user"
    #: A remote client that may look.
    OBSERVER = "observer"


CLIENT_ROLES = frozenset({Role.ADMIN, Role.USER, Role.OBSERVER})


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody who calls, as their certificate proves."""

    role: Role
    #: Node id or client id: the hash of the caller's public key. Empty for the local owner.
    caller_id: str = ""


def client_uri(role: Role, client_id: str) -> str:
    """The name in the certificate of a client.

    Raises:
        ValueError: It is not a client's role, or not an id.
    """
    uri = f"macmesh://client/{role.value}/{client_id}"
    if _CLIENT_URI.fullmatch(uri) is None:
        raise ValueError(f"{role.value} {client_id!r} is not a client")
    return uri


def caller_of_certificate(certificate: x509.Certificate) -> Caller:
    """Who a certificate of this cluster's CA belongs to. The chain is the TLS layer's to check.

    The id is computed from the public key and must be the one that the certificate names, exactly one
    identity per certificate.

    Raises:
        RemoteUntrustedError: It is neither a node's nor a client's.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RemoteUntrustedError("the certificate's key is not P-256, so macmesh did not issue it")
    key_id = node_id_of(key)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        raise RemoteUntrustedError("the certificate names neither a node nor a client") from None
    is_node = node_dns_name(key_id) in names.get_values_for_type(x509.DNSName)
    roles = _client_roles(names.get_values_for_type(x509.UniformResourceIdentifier), key_id)
    if is_node and not roles:
        return Caller(Role.NODE, key_id)
    if len(roles) == 1 and not is_node:
        return Caller(roles[0], key_id)
    raise RemoteUntrustedError(f"the certificate's key belongs to {key_id}, which it does not name")


def _client_roles(uris: Iterable[str], key_id: str) -> list[Role]:
    found = (_CLIENT_URI.fullmatch(uri) for uri in uris)
    return [Role(match[1]) for match in found if match is not None and match[2] == key_id]
