"""RDMA over Thunderbolt by MLX's own ``jaccl`` backend.

* `group`: sets the backend up, over an `exchange` of ours, and tests it before use. Imports mlx.
* `lane`: a tensor lane over it. Imports mlx.
* `facts`: what a node can do, read by `ibv` and `thunderbolt` from the system's tools.
* `device_matrix`: which device reaches which rank, from everyone's facts; `choice`: whether a group uses it.
* `pool`: what its buffers cost.
"""
