"""The gRPC services of a node: thin servicers over `macmesh_daemon.node`."""
