"""Transport between workers: lanes and groups that carry arrays, and ports and lanes that carry bytes.

This package alone imports no mlx; `native`, `native_links`, `group`, `group_lane`, `group_check`, `measure`,
`stock_lane`, `ring.lane`, `jaccl.group`, `jaccl.lane`, `sync.self_test_main`, `testing.memory_lane` and
`testing.rebuilds` do, for the worker.

Arrays, over links of our own (`_group`):

* `lane`: what a tensor lane promises; `group_lane`: the lane over a group.
* `group`: groups of ranks, opened and closed any number of times in a process; `options`: their knobs.
* `joining`: how ranks find each other and prove who they are.
* `native`: loads the native module, if it was built for the MLX that is here.
* `native_links`: the links of connected peers; `measure`: their speed.

Arrays, over MLX's own backends:

* `stock_lane`: the lane over any of them.
* `ring`: a lane over ``ring`` on one machine, as a baseline.
* `jaccl`: RDMA over Thunderbolt; `group_check`: a test of a group before it is used.
* `stall`: ends a process whose wait cannot be interrupted.
* `sync`: how GPU and transport streams wait for each other.

Bytes:

* `control`: a lane of small messages between workers.
* `messages`: ports between two processes of one machine.
* `shared_memory`: memory that two processes share and that no name is left of; `addresses`: as text.

`errors` are those of all of them. `testing` holds fakes, kept to the same contracts, and a drill; `bench` measures.
"""
