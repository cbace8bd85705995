"""Weights between nodes: what a node holds of a model, who else holds it, and how the rest comes here. No mlx.

The errors are listed in `macmesh_daemon.weights.errors`.
"""
