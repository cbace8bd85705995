"""The asyncio shell around the cluster core: sockets, processes, disks and clocks.

`driver` feeds the core and carries out its effects in order, `peers` and `peer_service` speak to other
nodes, `candidates` verifies what discovery finds, `stage_host` runs this node's worker, `planning`
computes plans, `status` shows the result and `runtime` puts them together.
"""
