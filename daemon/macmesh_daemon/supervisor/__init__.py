"""The daemon's side of a worker process: start it, talk to it, see it end.

Nothing here imports mlx: a worker is known by its process id and its messages only.
"""
