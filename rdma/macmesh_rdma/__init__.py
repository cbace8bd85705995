"""Transport between workers: lanes and groups that carry arrays.

This package alone imports no mlx; `group`, `group_lane`, `measure`, `ring` and `testing` do, for the worker.

* `lane`: what a tensor lane promises; `group_lane`: the lane over a group; `ring`: over MLX's ``ring``, to compare.
* `group`: groups of MLX over our own links, opened, measured and closed; `native` loads the native module.
* `listener`, `bringup`, `handshake`, `endpoint`, `options`: how ranks find, prove and connect each other.
* `ports`, `stall`: for the ``ring`` lane.
* `testing`: a lane in memory, held to the same contract, and a drill of rebuilding groups.
"""
