"""Transport between workers: lanes and groups that carry arrays.

This package alone imports no mlx; `macmesh_rdma.ring` and `macmesh_rdma.testing` do, for the worker.

* `lane`: what a tensor lane promises.
* `ring`: the lane over MLX's own ``ring`` backend, on one machine.
* `native`: loads the native groups, if they were built for the MLX that is here.
* `ports`: reserves the port of a lane before the lane is opened.
* `stall`: a deadline for waits that nothing can interrupt.
* `testing`: a lane in memory, held to the same contract.
"""
