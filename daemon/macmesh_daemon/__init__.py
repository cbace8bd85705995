"""The macmesh daemon: everything that runs on a node."""
