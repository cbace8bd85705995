"""The asyncio shell around the cluster core: sockets, processes, disks and clocks.

`driver` feeds the core and carries out its effects in order, `peers` and `peer_service` speak to other
nodes, `candidates` verifies what discovery finds, `stage_host` runs this node's worker, `planning`
computes plans, `status` shows the result and `runtime` puts them together.
"""

import os

# gRPC writes a line for every handshake that fails, past our logs: a flood of them would fill the disk. It reads
# this when it is imported, which every process of a node does after this package.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
