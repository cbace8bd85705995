"""The worker process: runs one stage of a plan, talks to its daemon and to the workers beside it.

* `main` reads the first command and builds the rest.
* `shell` is the event loop: the daemon's socket, the life of the worker, every deadline of its start.
* `control_lane` is the mutual-TLS connection to the neighbours, with `identity` saying who they are.
* `inference` is the one thread that touches mlx; nothing else here imports it.
"""
