"""Who a node is and which cluster it belongs to: keys, certificates, and the files that keep them."""

from macmesh_daemon.identity.certificates import (
    ANY_NODE_NAME,
    ClusterCredentials,
    create_cluster_ca,
    issue_node_certificate,
    node_dns_name,
    node_id_of_certificate,
)
from macmesh_daemon.identity.credentials import (
    NodeCredentials,
    init_cluster,
    install_membership,
    load_cluster_credentials,
    load_credentials,
    provision_node,
)
from macmesh_daemon.identity.errors import (
    IdentityError,
    LocalClusterExistsError,
    LocalCredentialsError,
    LocalIdentityError,
    LocalNoClusterError,
    RemoteIdentityError,
    RemoteUnreachableError,
    RemoteUntrustedError,
)
from macmesh_daemon.identity.hardware import hardware_id, host_id
from macmesh_daemon.identity.keys import is_node_id, node_id_of
from macmesh_daemon.identity.node import NodeIdentity, Start, begin_start, load_or_create_identity

__all__ = [
    "ANY_NODE_NAME",
    "ClusterCredentials",
    "IdentityError",
    "LocalClusterExistsError",
    "LocalCredentialsError",
    "LocalIdentityError",
    "LocalNoClusterError",
    "NodeCredentials",
    "NodeIdentity",
    "RemoteIdentityError",
    "RemoteUnreachableError",
    "RemoteUntrustedError",
    "Start",
    "begin_start",
    "create_cluster_ca",
    "hardware_id",
    "host_id",
    "init_cluster",
    "install_membership",
    "is_node_id",
    "issue_node_certificate",
    "load_cluster_credentials",
    "load_credentials",
    "load_or_create_identity",
    "node_dns_name",
    "node_id_of",
    "node_id_of_certificate",
    "provision_node",
]
