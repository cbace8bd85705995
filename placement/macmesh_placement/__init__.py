"""Placement: model profiles, byte-exact ledgers and the planner. Pure: no I/O."""
