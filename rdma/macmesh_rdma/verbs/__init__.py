"""Links over RDMA devices of our own making: chosen, opened, tried before use, given up where they fail.

* `facts`: what a node tells of the devices that the verbs library lists; `cables`: those of two nodes that belong
  together. `devices`: asks the library, in a process of its own (`devices_main`).
* `settings`: what a rank needs to know to open its links; `opening`: opens them; `trial`: tests and measures them.
* `boot_counts`: how many queue pairs this machine has made since it was started.
"""
