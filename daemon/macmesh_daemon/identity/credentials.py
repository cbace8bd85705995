"""What a node needs to be part of a cluster, and the files it is kept in.

In the data folder: ``node.key`` and ``ca.key`` (mode 0600; ``ca.key`` on the founder, and where it was
imported), ``node.crt``,
``ca.crt``, and ``cluster.json``, which is written last: a folder without it belongs to no cluster, whatever
else a crash left.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from macmesh_daemon.files import write_durably
from macmesh_daemon.identity.certificates import (
    CLUSTER_PREFIX_LENGTH,
    ClusterCredentials,
    check_node_certificate,
    cluster_hash_of,
    create_cluster_ca,
    issue_node_certificate,
    load_ca,
)
from macmesh_daemon.identity.errors import (
    LocalClusterExistsError,
    LocalCredentialsError,
    LocalNoClusterError,
)
from macmesh_daemon.identity.keys import private_key_from_pem
from macmesh_daemon.identity.node import KEY_FILE_NAME, NodeIdentity, load_or_create_identity

CERT_FILE_NAME = "node.crt"
CA_FILE_NAME = "ca.crt"
CA_KEY_FILE_NAME = "ca.key"
CLUSTER_FILE_NAME = "cluster.json"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class NodeCredentials:
    """A node's key and certificate and the CA it trusts: all it needs for mutual TLS."""

    node_id: str
    key_pem: bytes
    cert_pem: bytes
    ca_pem: bytes
    #: SHA-256 of the CA certificate, 64 hex digits.
    cluster_hash: str
    #: This node made the cluster and holds the CA key.
    founder: bool
    #: Hash of the hardware UUID the key is bound to; empty where the machine has none.
    hardware_id: str
    #: When the certificate ends (UTC).
    expires_at: datetime
    #: Where the key and the certificate lie, for libraries that only read files.
    key_path: Path
    cert_path: Path
    #: The node id the folder had on another machine; None normally. See ``load_or_create_identity``.
    replaced_node_id: str | None = None

    @property
    def cluster_prefix(self) -> str:
        """First eight hex digits of the cluster hash: a filter, not a secret."""
        return self.cluster_hash[:CLUSTER_PREFIX_LENGTH]

    def remaining_days(self, now: datetime | None = None) -> float:
        """Days until the certificate ends; status warns below a third of its 825."""
        return (self.expires_at - (now or datetime.now(UTC))).total_seconds() / 86400

    def __repr__(self) -> str:
        return (
            f"NodeCredentials(node_id={self.node_id!r}, cluster={self.cluster_prefix!r}, "
            f"founder={self.founder})"
        )


def init_cluster(data_dir: Path) -> ClusterCredentials:
    """Found a cluster on this node: make its CA, certify this node, keep all of it in ``data_dir``.

    A crash on the way leaves a folder in which it can be called again. Blocks.

    Raises:
        LocalClusterExistsError: The folder already belongs to a cluster; nothing was changed.
        LocalCredentialsError: The folder's identity is broken.
        OSError: The folder cannot be written.
    """
    identity = load_or_create_identity(data_dir)
    _refuse_second_cluster(data_dir)
    ca = create_cluster_ca()
    write_durably(data_dir / CA_KEY_FILE_NAME, ca.ca_key_pem, mode=0o600)
    install_membership(data_dir, _issue(ca, identity), ca.ca_pem, founder=True, hardware=identity.hardware_id)
    return ca


def provision_node(data_dir: Path, ca: ClusterCredentials) -> str:
    """Make ``data_dir`` a node of the CA's cluster without the node's own doing; returns its node id.

    For throw-away clusters on one machine: the key is made here. Blocks.

    Raises:
        LocalClusterExistsError: The folder already belongs to a cluster.
        LocalCredentialsError: The folder's identity or the CA is broken.
        OSError: The folder cannot be written.
    """
    identity = load_or_create_identity(data_dir)
    install_membership(
        data_dir, _issue(ca, identity), ca.ca_pem, founder=False, hardware=identity.hardware_id
    )
    return identity.node_id


def install_membership(
    data_dir: Path, cert_pem: bytes, ca_pem: bytes, *, founder: bool, hardware: str | None = None
) -> NodeCredentials:
    """Keep a certificate that a cluster issued to the node in ``data_dir``. Blocks.

    Raises:
        LocalClusterExistsError: The folder already belongs to a cluster.
        LocalCredentialsError: The certificate is not this node's, not of this CA, or not valid now.
        OSError: The folder cannot be written.
    """
    identity = load_or_create_identity(data_dir, machine=hardware)
    _refuse_second_cluster(data_dir)
    check_node_certificate(cert_pem, ca_pem, node_id=identity.node_id)
    write_durably(data_dir / CERT_FILE_NAME, cert_pem, mode=0o644)
    write_durably(data_dir / CA_FILE_NAME, ca_pem, mode=0o644)
    record = {"version": _FORMAT_VERSION, "cluster_hash": cluster_hash_of(ca_pem), "founder": founder}
    write_durably(data_dir / CLUSTER_FILE_NAME, (json.dumps(record, indent=2) + "\n").encode(), mode=0o600)
    return load_credentials(data_dir, machine=hardware)


def load_credentials(
    data_dir: Path, *, machine: str | None = None, now: datetime | None = None
) -> NodeCredentials:
    """Read the node's credentials and check that they belong together and are valid now. Blocks.

    Args:
        data_dir: The daemon's folder.
        machine: Hardware id of this machine; read from the system by default.
        now: The time to check validity at; the wall clock by default.

    Raises:
        LocalNoClusterError: The folder belongs to no cluster (yet, or any more: it was copied from another
        machine).
        LocalCredentialsError: Files are missing, broken, expired or of different clusters.
        OSError: The folder cannot be read, or an identity it lacks cannot be written.
    """
    identity = load_or_create_identity(data_dir, machine=machine)
    record = _read_cluster(data_dir)
    if record is None:
        reason = (
            f" (its identity {identity.replaced_node_id} was made on another machine and put aside)"
            if identity.replaced_node_id
            else ""
        )
        raise LocalNoClusterError(
            f"{data_dir} belongs to no cluster{reason}: run `daemonctl cluster init` on the first node, "
            "`daemonctl cluster join TOKEN` on the others"
        )
    cert_pem = _read(data_dir / CERT_FILE_NAME)
    ca_pem = _read(data_dir / CA_FILE_NAME)
    cluster_hash = cluster_hash_of(ca_pem)
    if cluster_hash != record["cluster_hash"]:
        raise LocalCredentialsError(
            f"{data_dir / CA_FILE_NAME} is not the CA of the cluster that {CLUSTER_FILE_NAME} names"
        )
    expires_at = check_node_certificate(cert_pem, ca_pem, node_id=identity.node_id, now=now)
    return NodeCredentials(
        node_id=identity.node_id,
        key_pem=identity.key_pem,
        cert_pem=cert_pem,
        ca_pem=ca_pem,
        cluster_hash=cluster_hash,
        founder=bool(record["founder"]),
        hardware_id=identity.hardware_id,
        expires_at=expires_at,
        key_path=data_dir / KEY_FILE_NAME,
        cert_path=data_dir / CERT_FILE_NAME,
    )


def load_cluster_credentials(data_dir: Path) -> ClusterCredentials:
    """Read the CA with its key, which the founder's folder holds, and those it was imported to. Blocks.

    Raises:
        LocalNoClusterError: The folder belongs to no cluster, or does not hold its CA key.
        LocalCredentialsError: Files are broken.
    """
    if not holds_ca_key(data_dir):
        raise LocalNoClusterError(
            "this node does not hold the cluster's CA key: run this on the node where `daemonctl cluster init` "
            "ran, or bring the key here with `daemonctl cluster ca export` and `import`"
        )
    ca_pem = _read(data_dir / CA_FILE_NAME)
    return ClusterCredentials(
        ca_pem=ca_pem, ca_key_pem=_read(data_dir / CA_KEY_FILE_NAME), cluster_hash=cluster_hash_of(ca_pem)
    )


def cluster_of(data_dir: Path) -> str | None:
    """The hash of the cluster that the node in ``data_dir`` belongs to; None where it belongs to none. Blocks.

    Raises:
        LocalCredentialsError: The folder's record is damaged.
    """
    record = _read_cluster(data_dir)
    return None if record is None else str(record["cluster_hash"])


def holds_ca_key(data_dir: Path) -> bool:
    """Whether the node in ``data_dir`` can certify others."""
    return _read_cluster(data_dir) is not None and (data_dir / CA_KEY_FILE_NAME).exists()


def import_ca_key(data_dir: Path, ca: ClusterCredentials) -> None:
    """Let the node in ``data_dir`` certify others of its cluster. Blocks.

    Raises:
        LocalNoClusterError: The folder belongs to no cluster.
        LocalCredentialsError: The key is another cluster's, or does not belong to its certificate.
        OSError: The folder cannot be written.
    """
    record = _read_cluster(data_dir)
    if record is None:
        raise LocalNoClusterError(f"{data_dir} belongs to no cluster: join it first, then import its CA key")
    load_ca(ca)
    if cluster_hash_of(ca.ca_pem) != record["cluster_hash"]:
        raise LocalCredentialsError(
            f"this is the CA of cluster {cluster_hash_of(ca.ca_pem)[:CLUSTER_PREFIX_LENGTH]}, and "
            f"{data_dir} belongs to {record['cluster_hash'][:CLUSTER_PREFIX_LENGTH]}"
        )
    write_durably(data_dir / CA_KEY_FILE_NAME, ca.ca_key_pem, mode=0o600)


def replace_certificate(
    data_dir: Path, cert_pem: bytes, *, machine: str | None = None, now: datetime | None = None
) -> NodeCredentials:
    """Keep a newer certificate of the same key and the same cluster. Blocks.

    Raises:
        LocalCredentialsError: It is another key's, or of another CA, or not valid; the old one stays.
        OSError: The folder cannot be written; the old one stays.
    """
    identity = load_or_create_identity(data_dir, machine=machine)
    check_node_certificate(cert_pem, _read(data_dir / CA_FILE_NAME), node_id=identity.node_id, now=now)
    write_durably(data_dir / CERT_FILE_NAME, cert_pem, mode=0o644)
    return load_credentials(data_dir, machine=machine, now=now)


def _issue(ca: ClusterCredentials, identity: NodeIdentity) -> bytes:
    key = private_key_from_pem(identity.key_pem, where=KEY_FILE_NAME)
    return issue_node_certificate(ca, key.public_key())


def _refuse_second_cluster(data_dir: Path) -> None:
    record = _read_cluster(data_dir)
    if record is not None:
        raise LocalClusterExistsError(
            f"{data_dir} already belongs to cluster {record['cluster_hash'][:CLUSTER_PREFIX_LENGTH]}: "
            "use another data_dir, or remove this one to leave that cluster for good"
        )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LocalCredentialsError(f"{path} is missing: join the cluster again") from None


def _read_cluster(data_dir: Path) -> dict[str, Any] | None:
    path = data_dir / CLUSTER_FILE_NAME
    try:
        value = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LocalCredentialsError(f"{path} is not readable JSON: {error}") from error
    if (
        not isinstance(value, dict)
        or value.get("version") != _FORMAT_VERSION
        or not isinstance(value.get("cluster_hash"), str)
        or not isinstance(value.get("founder"), bool)
    ):
        raise LocalCredentialsError(f"{path} is not of format version {_FORMAT_VERSION}")
    return value
