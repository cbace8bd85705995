"""The cluster's private CA and the certificates of its nodes."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from macmesh_daemon.identity.errors import (
    LocalCertificateExpiredError,
    LocalCredentialsError,
    RemoteUntrustedError,
)
from macmesh_daemon.identity.keys import new_private_key, node_id_of, private_key_from_pem, private_key_to_pem

CA_VALIDITY = timedelta(days=3652)
NODE_VALIDITY = timedelta(days=825)
# A certificate is accepted this much longer than its stated end, loudly. TLS libraries know no grace, so it
# is part of what they are shown as the validity; `expires_at` is always the stated end.
GRACE = timedelta(days=7)
# A Mac whose clock is wrong by less than this can still join.
BACKDATING = timedelta(days=2)
# Every node of every cluster answers to this name; the cluster's CA says which cluster it is.
ANY_NODE_NAME = "node.macmesh"
CLUSTER_PREFIX_LENGTH = 8


def node_dns_name(node_id: str) -> str:
    """Return the DNS name in the certificate of one node."""
    return f"{node_id}.{ANY_NODE_NAME}"


@dataclass(frozen=True, slots=True)
class ClusterCredentials:
    """The cluster's CA with its private key: whoever holds it can admit nodes."""

    ca_pem: bytes
    ca_key_pem: bytes
    #: SHA-256 of the CA certificate (DER), 64 hex digits. It names the cluster.
    cluster_hash: str

    def __repr__(self) -> str:
        return f"ClusterCredentials(cluster_hash={self.cluster_hash!r})"


def cluster_hash_of(ca_pem: bytes) -> str:
    """Return the hex SHA-256 of a CA certificate's DER form.

    Raises:
        LocalCredentialsError: ``ca_pem`` is no certificate.
    """
    return hashlib.sha256(
        load_certificate(ca_pem, where="the CA certificate").public_bytes(serialization.Encoding.DER)
    ).hexdigest()


def load_certificate(pem: bytes, *, where: str) -> x509.Certificate:
    """Decode one PEM certificate; ``where`` names its file in errors.

    Raises:
        LocalCredentialsError: It is no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise LocalCredentialsError(f"{where} is no readable certificate: {error}") from error


def create_cluster_ca(*, now: datetime | None = None) -> ClusterCredentials:
    """Make the CA of a new cluster: P-256, valid for ten years, path length 0 (signs no other CA)."""
    moment = now or datetime.now(UTC)
    key = new_private_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "macmesh cluster CA")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - BACKDATING)
        .not_valid_after(moment + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    return ClusterCredentials(
        ca_pem=pem, ca_key_pem=private_key_to_pem(key), cluster_hash=cluster_hash_of(pem)
    )


def issue_node_certificate(
    ca: ClusterCredentials, public_key: ec.EllipticCurvePublicKey, *, now: datetime | None = None
) -> bytes:
    """Certify a node's key for 825 days and seven days of grace; returns PEM.

    The certificate names the node twice: as common name (the bare id) and as DNS names
    ``<id>.node.macmesh`` and ``node.macmesh``, so that TLS itself can check for one node or for any node of
    the cluster.

    Raises:
        LocalCredentialsError: The CA's files are broken or do not belong together.
    """
    moment = now or datetime.now(UTC)
    ca_certificate, ca_key = load_ca(ca)
    node_id = node_id_of(public_key)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)]))
        .issuer_name(ca_certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(moment - BACKDATING, ca_certificate.not_valid_before_utc))
        .not_valid_after(min(moment + NODE_VALIDITY + GRACE, ca_certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage_of_a_leaf(), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
            critical=False,
        )
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName(node_dns_name(node_id)), x509.DNSName(ANY_NODE_NAME)]),
            critical=False,
        )
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def load_ca(ca: ClusterCredentials) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA's certificate and key, ready to sign.

    Raises:
        LocalCredentialsError: They are broken or do not belong together.
    """
    certificate = load_certificate(ca.ca_pem, where="the CA certificate")
    key = private_key_from_pem(ca.ca_key_pem, where="the CA key")
    if key.public_key() != certificate.public_key():
        raise LocalCredentialsError("the CA key does not belong to the CA certificate")
    return certificate, key


def node_id_of_certificate(certificate: x509.Certificate) -> str:
    """Return the id of the node that a certificate was issued to.

    The id is computed from the public key and must be the name in the certificate too; a certificate for
    something else (a client, the CA itself) is refused. The chain to the CA is the TLS layer's to check.

    Raises:
        RemoteUntrustedError: It is not a node's certificate.
    """
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise RemoteUntrustedError("the certificate's key is not P-256, so it is not a macmesh node's")
    node_id = node_id_of(key)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise RemoteUntrustedError("the certificate names no node") from None
    if node_dns_name(node_id) not in names.get_values_for_type(x509.DNSName):
        raise RemoteUntrustedError(f"the certificate's key belongs to {node_id}, which it does not name")
    return node_id


def end_of_ca(ca_pem: bytes) -> datetime:
    """When a CA certificate ends (UTC).

    Raises:
        LocalCredentialsError: ``ca_pem`` is no certificate.
    """
    return load_certificate(ca_pem, where="the CA certificate").not_valid_after_utc


def check_node_certificate(
    cert_pem: bytes, ca_pem: bytes, *, node_id: str, now: datetime | None = None
) -> datetime:
    """Check that a node certificate is this node's, of this CA and valid now; returns its stated end (UTC).

    Until `GRACE` after the stated end it counts as valid.

    Raises:
        LocalCredentialsError: It is not; the message says what is wrong and what to do.
    """
    moment = now or datetime.now(UTC)
    certificate = load_certificate(cert_pem, where="the node certificate")
    try:
        named = node_id_of_certificate(certificate)
    except RemoteUntrustedError as error:
        raise LocalCredentialsError(f"the node certificate is unusable: {error}") from error
    if named != node_id:
        raise LocalCredentialsError(
            f"the node certificate belongs to {named} but the key to {node_id}: join the cluster again"
        )
    expires_at = certificate.not_valid_after_utc - GRACE
    if moment >= certificate.not_valid_after_utc:
        raise LocalCertificateExpiredError(
            f"the node certificate expired on {expires_at:%Y-%m-%d} "
            f"(this machine's clock says {moment:%Y-%m-%d}): "
            "correct the clock, or join again with `daemonctl cluster join TOKEN`"
        )
    store = Store([load_certificate(ca_pem, where="the CA certificate")])
    verifier = (
        PolicyBuilder().store(store).time(moment).build_server_verifier(x509.DNSName(node_dns_name(node_id)))
    )
    try:
        verifier.verify(certificate, [])
    except VerificationError as error:
        raise LocalCredentialsError(
            f"the node certificate was not issued by this cluster's CA, or is not valid yet: {error}"
        ) from error
    return expires_at


def usage_of_a_leaf() -> x509.KeyUsage:
    """The key usage of a certificate that signs no other."""
    return _key_usage(signs_certificates=False)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
