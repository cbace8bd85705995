"""A deterministic simulator of a cluster: seeded network, drives, clocks, workers, planner and faults.

The daemon's pure core (`macmesh_daemon.cluster`) runs in it unchanged. `World` is a cluster in virtual time
that breaks no invariant or raises; everything random in it comes from one seed, so a seed that fails replays
exactly. From the bottom up::

    parts, clock, drive, node, network, workers     what a cluster is made of
    serving                                         clients, API nodes' desks and heads, and what is checked of them
    trace, checker                                  what happened, and whether it may
    simulation, world                               time and effects; what tests do and ask
    options, chaos, run                             a run drawn from a seed, its faults, its judgement
    failover, thousand                              measurements
    scenario                                        readable files of what is done and what must come of it
    solo                                            one machine alone, driven by hand
    mutants                                         is the net fine enough? broken cores that must be caught

On the command line, from the root of the repository::

    PYTHONPATH=tests python -m simulator --seed 7 --trace
    PYTHONPATH=tests python -m simulator --seeds 2000 --jobs 2
    PYTHONPATH=tests python -m simulator.failover
    PYTHONPATH=tests python -m simulator.thousand
    PYTHONPATH=tests python -m simulator.scenario [NAME] [--update]
    PYTHONPATH=tests python -m simulator.mutants
"""

from .checker import Checker, InvariantBrokenError
from .world import World

__all__ = ["Checker", "InvariantBrokenError", "World"]
