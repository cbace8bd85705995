"""Model folders on this machine: finding them, reading their headers, profiling them. No mlx.

The errors are listed in `macmesh_daemon.models.errors`.
"""
