"""For tests: lanes in memory held to the contracts of the others, RDMA without devices, a drill of rebuilding groups.

* `memory_lane`: stages that run as threads of one process. Imports mlx.
* `memory_control`: control lanes between ranks of one process.
* `fakeverbs`: a fabric of RDMA devices between processes, for machines without any.
* `rebuilds`: ``python -m macmesh_rdma.testing.rebuilds`` makes groups again and again, and kills ranks.
"""
