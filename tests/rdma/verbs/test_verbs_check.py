"""The check for the owners of two Macs, here two processes with a fabric of RDMA devices that are not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from macmesh_rdma.errors import LocalOptionError
from macmesh_rdma.testing.fakeverbs import FakeFabric
from macmesh_rdma.testing.verbs_check import FORMAT, Invitation

MODULE = "macmesh_rdma.testing.verbs_check"
DEADLINE_SECONDS = 90


def start(fabric: FakeFabric, host: str, folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", MODULE, *arguments, "--output", str(folder / f"{host}.json")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **fabric.environment(host)},
    )


def check(fabric: FakeFabric, folder: Path) -> list[tuple[int, dict[str, Any]]]:
    """Exit code and file of both machines."""
    joined = ["--host", "127.0.0.1", "--devices", "fake0"]
    first = start(fabric, "a", folder, "first", *joined, "--quick", "--rounds", "1")
    assert first.stdout is not None
    processes = [first]
    try:
        word = next(line for line in first.stdout if "--invitation" in line).split()[-1]
        processes.append(start(fabric, "b", folder, "second", *joined, "--invitation", word))
        for process in processes:
            process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    told = [json.loads((folder / f"{host}.json").read_text()) for host in "ab"]
    return [(process.returncode, each) for process, each in zip(processes, told, strict=True)]


@pytest.mark.process
def test_two_machines_tell_their_devices_and_what_was_measured(tmp_path: Path) -> None:
    with FakeFabric([("a.fake0", "b.fake0")]) as fabric:
        for rank, (code, told) in enumerate(check(fabric, tmp_path)):
            assert (code, told["format"], told["rank"]) == (0, FORMAT, rank)
            assert [device["name"] for device in told["facts"]["devices"]] == ["fake0"]
            steps = told["steps"]
            assert [step["name"] for step in steps] == [
                "tcp",
                "verbs, as MLX's jaccl",
                "verbs, set up again 1",
            ]
            for step in steps:
                assert step["ok"], step
                assert step["provider"] == step["name"][: len(step["provider"])]
                assert step["gb_per_s"] > 0
            assert steps[1]["rows"][0]["half_trip_us"] > 0
            assert told["counts"]["queue_pairs_made"] == told["counts"]["queue_pairs_freed"] > 0
        assert fabric.counters().queue_pairs == 0


def test_an_invitation_is_one_word_and_nothing_else_is_taken_for_one() -> None:
    invitation = Invitation("{}", "ab", 3, pull=True)
    assert Invitation.decode(invitation.encode()) == invitation
    with pytest.raises(LocalOptionError, match="no invitation"):
        Invitation.decode("bm9wZQ==")
