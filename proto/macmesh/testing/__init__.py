"""A fake daemon for tests of programs that use macmesh: real gRPC over a real socket, scripted answers.

::

    with ThreadedFakeDaemon(tmp_path / "d.sock") as daemon:
        daemon.script.status = scenes.ready()
        with macmesh.Client(daemon.target) as client:
            ...
"""

from macmesh.testing import scenes
from macmesh.testing.daemon import FakeDaemon, ThreadedFakeDaemon
from macmesh.testing.script import GenerateScript, Script

__all__ = ["FakeDaemon", "GenerateScript", "Script", "ThreadedFakeDaemon", "scenes"]
