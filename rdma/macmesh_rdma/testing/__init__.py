"""For tests: a lane in memory, held to the contract of the others, and a drill of rebuilding groups.

* `memory_lane`: stages that run as threads of one process. Imports mlx.
* `rebuilds`: ``python -m macmesh_rdma.testing.rebuilds`` makes groups again and again, and kills ranks.
"""
