"""Measures the transport: ``python -m macmesh_rdma.bench --json``.

* `main` starts the ranks as processes of their own, tells them what to measure and prints the rows.
* `rank` is one such process; it obeys commands from its standard input.
* `through_mlx`, `through_links` and `limits` measure the levels.

Every figure of a run comes from the same minutes on the same machine, ours beside MLX's ``ring`` and beside the
limits: raw sockets and memcpy. A latency is half of a round trip.
"""
