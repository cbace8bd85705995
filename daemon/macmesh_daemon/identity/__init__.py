"""Who a node is and which cluster it belongs to: keys, certificates, and the files that keep them."""

from macmesh_daemon.identity.ca_transfer import export_ca, open_exported_ca
from macmesh_daemon.identity.certificates import (
    ANY_NODE_NAME,
    GRACE,
    ClusterCredentials,
    create_cluster_ca,
    issue_node_certificate,
    node_dns_name,
    node_id_of_certificate,
)
from macmesh_daemon.identity.credentials import (
    NodeCredentials,
    cluster_of,
    holds_ca_key,
    import_ca_key,
    init_cluster,
    install_membership,
    load_cluster_credentials,
    load_credentials,
    provision_node,
    replace_certificate,
)
from macmesh_daemon.identity.errors import (
    IdentityError,
    LocalCertificateExpiredError,
    LocalClientError,
    LocalClusterExistsError,
    LocalCredentialsError,
    LocalIdentityError,
    LocalNoClusterError,
    LocalTokenError,
    RemoteIdentityError,
    RemoteJoinRefusedError,
    RemoteUnreachableError,
    RemoteUntrustedError,
)
from macmesh_daemon.identity.hardware import hardware_id, host_id
from macmesh_daemon.identity.keys import is_node_id, node_id_of
from macmesh_daemon.identity.node import NodeIdentity, Start, begin_start, load_or_create_identity
from macmesh_daemon.identity.requests import key_of_request, make_certificate_request
from macmesh_daemon.identity.roles import Caller, Role, caller_of_certificate
from macmesh_daemon.identity.tokens import JoinToken

__all__ = [
    "ANY_NODE_NAME",
    "GRACE",
    "Caller",
    "ClusterCredentials",
    "IdentityError",
    "JoinToken",
    "LocalCertificateExpiredError",
    "LocalClientError",
    "LocalClusterExistsError",
    "LocalCredentialsError",
    "LocalIdentityError",
    "LocalNoClusterError",
    "LocalTokenError",
    "NodeCredentials",
    "NodeIdentity",
    "RemoteIdentityError",
    "RemoteJoinRefusedError",
    "RemoteUnreachableError",
    "RemoteUntrustedError",
    "Role",
    "Start",
    "begin_start",
    "caller_of_certificate",
    "cluster_of",
    "create_cluster_ca",
    "export_ca",
    "hardware_id",
    "holds_ca_key",
    "host_id",
    "import_ca_key",
    "init_cluster",
    "install_membership",
    "is_node_id",
    "issue_node_certificate",
    "key_of_request",
    "load_cluster_credentials",
    "load_credentials",
    "load_or_create_identity",
    "make_certificate_request",
    "node_dns_name",
    "node_id_of",
    "node_id_of_certificate",
    "open_exported_ca",
    "provision_node",
    "replace_certificate",
]
