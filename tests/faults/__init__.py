"""Faults on real daemons: ``PYTHONPATH=tests python -m faults``, or ``make faults``.

Every scenario starts real ``macmeshd`` processes, does them harm, and measures how long it takes until the
others know and until all is well again. After each one the cluster's invariants are checked over the event logs
of all nodes. Scenarios that share a cluster form a group; each group runs in namespaces of its own (network,
mounts, processes), so that all that it started and changed vanishes with it. Nothing leaves those networks.
"""
