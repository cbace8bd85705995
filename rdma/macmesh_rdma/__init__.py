"""Transport between workers: lanes and groups that carry arrays.

This package alone imports no mlx; `macmesh_rdma.ring` and `macmesh_rdma.testing` do, for the worker.
Neither do the message ports below, which a daemon and its worker talk through.

* `lane`: what a tensor lane promises.
* `ring`: the lane over MLX's own ``ring`` backend, on one machine.
* `native`: loads the native groups, if they were built for the MLX that is here.
* `ports`: reserves the port of a lane before the lane is opened.
* `stall`: a deadline for waits that nothing can interrupt.
* `testing`: a lane in memory, held to the same contract.

* `message_port`: what a port of messages between two processes of one machine promises.
* `ring_port`: a port over rings in shared memory, `stream_port`: over a Unix socket, `memory_port`: in memory.
* `local_connection`: makes a pair of ports for a process and one that it starts.
* `shared_memory`: memory that two processes share and that no name is left of.
"""
