"""Transport between workers: lanes and groups that carry arrays, and ports and lanes that carry bytes.

This package alone imports no mlx; `native`, `group`, `group_lane`, `ring`, `jaccl`, `group_check`, `measure`,
`self_test_main` and `testing` do, for the worker.

Arrays, over links of our own (`_group`):

* `lane`: what a tensor lane promises; `group_lane`: the lane over a group.
* `group`: groups of ranks, opened and closed any number of times in a process; `options`: their knobs.
* `endpoint`, `listener`, `bringup`, `handshake`: how ranks find each other and prove who they are.
* `native`: loads the native module, if it was built for the MLX that is here.
* `measure`: the speed of fresh links.

Arrays, over MLX's own backends:

* `ring`: a lane over ``ring`` on one machine, as a baseline; `ports` and `stall` serve it.
* `jaccl`: RDMA over Thunderbolt, set up through an `exchange` of ours; which devices it uses is decided by
  `rdma_facts` (read by `ibv` and `thunderbolt`), `device_matrix` and `group_choice`.
* `group_check`: a test of a group before it is used.
* `sync_mode`, `quarantine`, `self_test`: how GPU and transport streams wait for each other.

Bytes:

* `control`: what a control lane between workers promises; `control_socket` is the one over mutual TLS.
* `message_port`: what a port between two processes of one machine promises; `ring_port`: over rings in shared
  memory (`_ring`), `stream_port`: over a Unix socket, `memory_port`: in memory.
* `local_connection`: makes a pair of ports for a process and one that it starts.
* `shared_memory`: memory that two processes share and that no name is left of.

`testing` and `testing_control` hold fakes, kept to the same contracts; `bench` measures.
"""
