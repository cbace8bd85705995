"""Requests in the simulated cluster: clients, the desks of API nodes, the heads that run them, and their checker.

The pure machine of a request (`macmesh_daemon.requests`) and what a node's view means for it
(`macmesh_daemon.node.plan_seen`) run here unchanged, under everything that happens to the cluster.
"""

from .serving import Serving

__all__ = ["Serving"]
