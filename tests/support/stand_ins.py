"""Values that stand in where nothing looks at them."""

import datetime as dt
from pathlib import Path

from macmesh_daemon.identity import NodeCredentials


def stand_in_credentials(node_id: str = "n") -> NodeCredentials:
    """Credentials without a key, for what only hands them on to a fake worker."""
    return NodeCredentials(
        node_id=node_id,
        key_pem=b"",
        cert_pem=b"",
        ca_pem=b"",
        cluster_hash="h",
        founder=True,
        hardware_id="",
        expires_at=dt.datetime.now(dt.UTC),
        key_path=Path(),
        cert_path=Path(),
    )
