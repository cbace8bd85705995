"""Messages of bytes between a process and one that it starts.

* `port`: what a message port promises; `waiting_port`: the part of it that waits on the event loop.
* `ring_port`: over rings in shared memory (`_ring`), `stream_port`: over a Unix socket, `memory_port`: in memory.
* `local_connection`: makes the pair of ports, and falls back from the one to the other.
"""
