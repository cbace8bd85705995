"""How the ranks of a group find each other and prove who they are, until each holds descriptors to its peers.

* `endpoint`: where a worker's lanes can be reached; `listener`: where it is reached.
* `bringup`: connects a rank to its peers.
* `reactor`: runs the conversations of a bring-up; `conversation`: what is said in them.
* `handshake`: mutual authentication of one connection, without sockets.
* `peer_links`: what a connected peer is reached by.
"""
