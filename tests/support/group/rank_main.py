"""One rank of `ranks.Ranks`: makes its group, then serves calls until the parent closes the connection."""

from __future__ import annotations

import pickle
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the tests' folder, in place of this one

from support.group import cases  # noqa: E402  found through the line above
from support.group.ranks import RankError  # noqa: E402  the same


def main() -> None:
    """Serves."""
    parent = Connection(int(sys.argv[1]))
    context = cases.Context(pickle.loads(parent.recv_bytes()))  # noqa: S301  from our own parent
    while True:
        try:
            function, arguments = pickle.loads(parent.recv_bytes())  # noqa: S301
        except EOFError:
            break
        begun = time.monotonic()
        try:
            result = getattr(cases, function)(context, *arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, the parent judges it
            now = time.monotonic()
            result = RankError(type(error).__name__, str(error), now - begun, now)
        parent.send_bytes(pickle.dumps(result))
    context.group.close()


if __name__ == "__main__":
    main()
