"""Rehearses a fault on a running cluster, through the SDK as any client: `daemonctl drill`.

`target` is the cluster as a drill sees it, `runner` makes the fault and watches, `tokens` and `report` judge. Pure but
for the target.
"""
