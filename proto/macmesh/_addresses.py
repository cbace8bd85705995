"""The nodes of a cluster that a client knows. Pure but for parsing."""

from macmesh._targets import Target, parse_target
from macmesh.credentials import ANY_NODE_NAME
from macmesh.errors import LocalArgumentError
from macmesh.v1 import cluster_pb2

_MOST = 64
_FRESH_SECONDS = 60.0


class AddressBook:
    """Where a generation may go on. The first target is the client's own.

    A client on a Unix socket knows no other node: others want credentials. Credentials for one certain node are good
    for that one only.
    """

    def __init__(self, own: Target) -> None:
        self._targets = [own]
        self._asked_at: float | None = None
        credentials = own.credentials
        self._credentials = (
            credentials if credentials is not None and credentials.server_name == ANY_NODE_NAME else None
        )
        for address in self._credentials.addresses if self._credentials is not None else ():
            self._add(address)

    def __len__(self) -> int:
        return len(self._targets)

    def learn(self, status: cluster_pb2.GetStatusResponse) -> None:
        """Keep the addresses of the members, those of the living first."""
        nodes = sorted(status.nodes, key=lambda node: node.liveness != "alive")
        for node in nodes:
            for address in node.member.addresses:
                self._add(address)

    def wants_news(self, now: float) -> bool:
        """Whether the cluster should be asked for its members; counts as asked if so."""
        if self._credentials is None or (
            self._asked_at is not None and now - self._asked_at < _FRESH_SECONDS
        ):
            return False
        self._asked_at = now
        return True

    def after(self, lost: Target) -> Target:
        """The next to try, in turn."""
        index = next((i for i, target in enumerate(self._targets) if target.address == lost.address), -1)
        return self._targets[(index + 1) % len(self._targets)]

    def _add(self, address: str) -> None:
        try:
            target = parse_target(address, self._credentials)
        except LocalArgumentError:
            return  # a newer daemon may have addresses of another form
        known = {other.address for other in self._targets}
        if self._credentials is not None and target.address not in known and len(self._targets) < _MOST:
            self._targets.append(target)
