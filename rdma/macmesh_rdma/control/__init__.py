"""Small messages of bytes between the workers of a plan, independent of mlx and of what carries the arrays.

* `lane`: what a control lane promises.
* `socket_lane`: over TCP with mutual TLS; `connection`: one connection of it.
* `state`: what waits for a connection and whether its other end lives, as pure state.
"""
