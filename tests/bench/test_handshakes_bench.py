"""A flood of handshakes without a certificate leaves heartbeats their deadline, and nothing in the log."""

import json
import os
import subprocess
import sys

import pytest

from bench_scripts import BENCH

#: A heartbeat's deadline is 500 ms.
BEARABLE_MS = 250


@pytest.mark.process
def test_heartbeats_survive_a_flood_of_handshakes() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "handshakes.py"), "--seconds", "0.5", "--flooders", "4"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={k: v for k, v in os.environ.items() if k != "GRPC_VERBOSITY"},
    )
    figures = json.loads(done.stdout)
    assert figures["handshakes_per_second"] > 20
    assert figures["flood"]["beats"] >= 3
    assert figures["flood"]["max_ms"] < BEARABLE_MS
    assert done.stderr == ""
