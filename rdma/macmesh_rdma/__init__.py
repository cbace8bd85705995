"""Transport between workers: lanes and groups that carry arrays.

This package alone imports no mlx; `ring`, `jaccl`, `group_check`, `self_test_main` and `testing` do, for the worker.

* `lane`: what a tensor lane promises.
* `ring`: the lane over MLX's own ``ring`` backend, on one machine.
* `control`: what a control lane promises; `control_socket` is the one over mutual TLS.
* `jaccl`: MLX's own backend for RDMA over Thunderbolt, set up through an `exchange` of ours; which devices it uses
  is decided by `rdma_facts` (read by `ibv` and `thunderbolt`), `device_matrix` and `group_choice`.
* `group_check`: a test of a group before it is used.
* `sync_mode`, `quarantine`, `self_test`: how GPU and transport streams wait for each other.
* `ports`: reserves the port of a lane before the lane is opened.
* `stall`: a deadline for waits that nothing can interrupt.
* `testing`, `testing_control`: lanes in memory, held to the same contracts.
"""
