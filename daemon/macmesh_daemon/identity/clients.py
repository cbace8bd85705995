"""Certificates of remote clients, and the list of those that were issued."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from macmesh_daemon.identity.certificates import BACKDATING, ClusterCredentials, load_ca, usage_of_a_leaf
from macmesh_daemon.identity.errors import LocalClientError
from macmesh_daemon.identity.keys import node_id_of
from macmesh_daemon.identity.roles import CLIENT_ROLES, Role, client_uri

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

DEFAULT_DAYS = 365
MAX_DAYS = 825
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """A client that was certified. Times are seconds since 1970."""

    client_id: str
    name: str
    role: str
    issued_at: float
    expires_at: float

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> ClientRecord:
        """Read what `to_json` gave.

        Raises:
            ValueError: It is something else.
        """
        try:
            return cls(
                client_id=str(value["client_id"]),
                name=str(value["name"]),
                role=str(value["role"]),
                issued_at=float(value["issued_at"]),
                expires_at=float(value["expires_at"]),
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a client: {error!r}") from error


def issue_client_certificate(
    ca: ClusterCredentials,
    public_key: ec.EllipticCurvePublicKey,
    *,
    name: str,
    role: str,
    days: int = DEFAULT_DAYS,
    now: datetime | None = None,
) -> tuple[bytes, ClientRecord]:
    """Certify a client's key; returns PEM and the record for the list.

    The role is in the certificate. It is good for TLS clients only: nothing that holds it can pass for a
    node.

    Raises:
        LocalClientError: Name, role or days are not acceptable.
        LocalCredentialsError: The CA's files are broken.
    """
    if _NAME.fullmatch(name) is None:
        raise LocalClientError(
            f"{name!r} is no client name: take 1 to 64 letters, digits, dots, dashes and underscores"
        )
    if role not in CLIENT_ROLES:
        raise LocalClientError(f"{role!r} is no role: take {', '.join(sorted(CLIENT_ROLES))}")
    if not 1 <= days <= MAX_DAYS:
        raise LocalClientError(f"a client's certificate lasts from 1 to {MAX_DAYS} days, not {days}")
    moment = now or datetime.now(UTC)
    certificate_of_ca, key_of_ca = load_ca(ca)
    client_id = node_id_of(public_key)
    expires = min(moment + timedelta(days=days), certificate_of_ca.not_valid_after_utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(certificate_of_ca.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(moment - BACKDATING, certificate_of_ca.not_valid_before_utc))
        .not_valid_after(expires)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage_of_a_leaf(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(client_uri(Role(role), client_id))]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key_of_ca.public_key()), critical=False
        )
        .sign(key_of_ca, hashes.SHA256())
    )
    record = ClientRecord(
        client_id=client_id,
        name=name,
        role=str(role),
        issued_at=moment.timestamp(),
        expires_at=expires.timestamp(),
    )
    return certificate.public_bytes(serialization.Encoding.PEM), record
