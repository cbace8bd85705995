"""Exit codes of `daemonctl`, the same for every command."""

from typing import Final

OK: Final = 0
#: The command failed, or the answer is no: a refused plan, tokens that differ.
FAILED: Final = 1
#: The command line is wrong.
USAGE: Final = 2
#: Nothing listens on the daemon's socket.
NOT_RUNNING: Final = 3
#: The cluster lacks a node of its plan, or its quorum.
DEGRADED: Final = 4
#: The same command may succeed later (EX_TEMPFAIL).
TRY_AGAIN: Final = 75
#: Ended by Ctrl-C.
INTERRUPTED: Final = 130
