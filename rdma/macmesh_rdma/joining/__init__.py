"""How the ranks of a group find each other and prove who they are, until each holds descriptors to its peers.

* `endpoint`: where a worker's lanes can be reached; `listener`: where it is reached.
* `plan`: what a rank wants to be connected to; `bringup`: connects it.
* `accepting` and `dialling`: the two sides of a bring-up; `joining_peer`: what there is of a peer meanwhile.
* `reactor`: runs the conversations of a bring-up; `conversation`: what is said in them.
* `handshake`: mutual authentication of one connection, without sockets; `introduction`: what is said in it.
* `peer_links`: what a connected peer is reached by.
"""
