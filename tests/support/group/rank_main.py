"""One rank of `ranks.Ranks`: makes a group, serves calls, makes the next, until the parent closes the connection."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])  # the tests' folder, in place of this one

from support.group import cases  # noqa: E402  found through the line above
from support.group.ranks import RankError, RankSetup  # noqa: E402  the same


def receive_setup(parent: Connection, passed: socket.socket) -> RankSetup:
    """What to make the next group from; its descriptors come after it."""
    setup: RankSetup = pickle.loads(parent.recv_bytes())  # noqa: S301  from our own parent
    count = len(setup.descriptors())
    _, descriptors, _, _ = socket.recv_fds(passed, 1, count)
    return setup.with_descriptors(descriptors)


def serve(parent: Connection, context: cases.Context) -> None:
    """Runs what the parent asks for until it closes the group."""
    while True:
        function, arguments = pickle.loads(parent.recv_bytes())  # noqa: S301  from our own parent
        if function == "close":
            context.group.close()
            parent.send_bytes(pickle.dumps("closed"))
            return
        begun = time.monotonic()
        try:
            result = getattr(cases, function)(context, *arguments)
        except Exception as error:  # noqa: BLE001  whatever it is, the parent judges it
            now = time.monotonic()
            result = RankError(type(error).__name__, str(error), now - begun, now)
        parent.send_bytes(pickle.dumps(result))


def main() -> None:
    """Serves."""
    with socket.socket(fileno=int(sys.argv[1])) as passed:
        parent = Connection(os.dup(passed.fileno()))
        while True:
            try:
                serve(parent, cases.Context(receive_setup(parent, passed)))
            except EOFError:
                break


if __name__ == "__main__":
    main()
