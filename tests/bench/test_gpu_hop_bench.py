"""The hop's measurement, small and without a GPU."""

import json
import subprocess
import sys

import pytest

from bench_scripts import BENCH


@pytest.mark.process
def test_every_variant_is_measured_between_two_processes() -> None:
    done = subprocess.run(
        [
            sys.executable,
            BENCH / "gpu_hop.py",
            "--device",
            "cpu",
            "--size",
            "64",
            "--layers",
            "1",
            "--hops",
            "3",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["bytes"] == 128
    assert len({(row["placeholder"], row["result"]) for row in told["rows"]}) == 9
    assert all(row["p50_us"] > 0 and row["compute_us"] > 0 for row in told["rows"])
