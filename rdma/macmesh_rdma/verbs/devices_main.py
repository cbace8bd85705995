"""Tells the RDMA devices of this machine: ``python -m macmesh_rdma.verbs.devices_main [LIBRARY]``. Imports mlx.

Writes `VerbsFacts` as JSON to stdout, with the reason where the library cannot be had.
"""

import json
import sys

from macmesh_rdma.errors import TransportError
from macmesh_rdma.native import load_group
from macmesh_rdma.verbs.facts import VerbsFacts, facts_of


def main(library: str = "") -> None:
    """Writes the facts to stdout."""
    try:
        load_group()
        from macmesh_rdma.verbs.opening import list_devices  # noqa: PLC0415  after the check of versions

        facts = facts_of(list_devices(library))
    except TransportError as error:
        facts = VerbsFacts(refused=str(error))
    sys.stdout.write(json.dumps(facts.to_json()))


if __name__ == "__main__":
    main(*sys.argv[1:2])
