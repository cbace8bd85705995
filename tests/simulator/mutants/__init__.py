"""Is the net fine enough? Single-line breaks of the core, each of which simulator or tests must catch.

A run without violations says little about a checker that could not see one. So each line of the core on which
safety or liveness rests is broken in `catalogue`, in a copy of the package, and `runner` expects somebody to
notice: first the tests of the broken part, then the simulator for some seconds, then all directed tests. A
survivor is a missing test.
"""
