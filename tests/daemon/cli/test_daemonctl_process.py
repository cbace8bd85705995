"""`daemonctl` as its own process, as a person or a script runs it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from macmesh.testing import GenerateScript, ThreadedFakeDaemon, scenes

pytestmark = pytest.mark.process

WAIT_SECONDS = 120.0
DAEMONCTL = str(Path(sys.executable).parent / "daemonctl")


def environment(socket_file: Path) -> dict[str, str]:
    return {**os.environ, "MACMESH_SOCKET": str(socket_file), "TERM": "xterm"}


def daemonctl(socket_file: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [DAEMONCTL, *argv],
        env=environment(socket_file),
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )


def test_status_json(daemon: ThreadedFakeDaemon, socket_file: Path) -> None:
    daemon.script.status = scenes.ready()
    done = daemonctl(socket_file, "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["format"] == "daemonctl-status/1"


def test_no_daemon_is_exit_3_with_what_to_do(socket_file: Path) -> None:
    done = daemonctl(socket_file, "status")
    assert done.returncode == 3
    assert done.stdout == ""
    assert "macmeshd is not running" in done.stderr
    assert "daemonctl service install" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell starts what goes to the background with SIGINT ignored, and a child would inherit that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_cancels_the_request_and_exits_130(daemon: ThreadedFakeDaemon, socket_file: Path) -> None:
    daemon.script.generate = GenerateScript(hold_after=2)
    with subprocess.Popen(
        [DAEMONCTL, "generate", "x"],
        env=environment(socket_file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(9) == "Once upon"  # text arrives while the generation goes on
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=WAIT_SECONDS)
    assert (process.returncode, out, err) == (130, "\n", "interrupted\n")
    assert daemon.cancelled.wait(WAIT_SECONDS)


def test_a_reader_that_goes_away_ends_it_in_order(daemon: ThreadedFakeDaemon, socket_file: Path) -> None:
    daemon.script.generate = GenerateScript(pieces=("word ",) * 5000)
    with subprocess.Popen(
        [DAEMONCTL, "generate", "x"],
        env=environment(socket_file),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == "word "
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(WAIT_SECONDS) == 0


def test_help_loads_neither_grpc_nor_protobuf() -> None:
    code = (
        "import sys\nfrom macmesh_daemon.cli.daemonctl import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'grpc', 'google.protobuf', 'asyncio', 'structlog', 'numpy', 'cryptography', 'platformdirs'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_status_loads_nothing_of_the_daemon(daemon: ThreadedFakeDaemon, socket_file: Path) -> None:
    code = (
        "import sys\nfrom macmesh_daemon.cli.daemonctl import main\n"
        "assert main(['status']) == 0\n"
        "heavy = {'structlog', 'numpy', 'cryptography', 'platformdirs', 'macmesh_placement', 'macmesh_daemon.node',\n"
        "         'macmesh_daemon.config', 'google.rpc', 'mlx'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(socket_file),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert daemon.calls
