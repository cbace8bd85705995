"""The simulated drive loses what a real one may lose, and the real program takes the steps it is modelled by."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon import files
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.node.storage import StateStore
from simulator.drive import PROTOCOL, Drive, DriveFullError, TornStateError
from simulator.parts import seeded

OLD, NEW = PersistentState(generation=1, term=1), PersistentState(generation=1, term=2)


def after_power_loss(drive: Drive, seed: int) -> PersistentState | None:
    """What is read then; None where the file is torn."""
    drive.lose_power(seeded(seed))
    try:
        return drive.load()
    except TornStateError:
        return None


def outcomes(steps: int, skips: frozenset[str] = frozenset()) -> set[PersistentState | None]:
    found: set[PersistentState | None] = set()
    for seed in range(40):
        drive = Drive(skips=skips)
        drive.state = OLD
        drive.write(NEW, steps)
        found.add(after_power_loss(drive, seed))
    return found


def test_a_power_loss_leaves_the_old_state_or_the_new_and_after_the_last_step_only_the_new() -> None:
    rename = PROTOCOL.index("rename") + 1

    for steps in range(rename):
        assert outcomes(steps) == {OLD}
    assert outcomes(rename) == {OLD, NEW}
    assert outcomes(len(PROTOCOL)) == {NEW}


def test_each_synchronisation_is_needed() -> None:
    assert None in outcomes(len(PROTOCOL), frozenset({"sync file"}))
    assert OLD in outcomes(len(PROTOCOL), frozenset({"sync folder"}))


@given(steps=st.integers(0, len(PROTOCOL)), seed=st.integers(0, 1000))
def test_what_a_starting_daemon_has_read_is_never_lost(steps: int, seed: int) -> None:
    drive = Drive()
    drive.state = OLD
    drive.write(NEW, steps)
    read = drive.load()

    assert after_power_loss(drive, seed) == read


def test_without_that_it_would_be() -> None:
    lost = set()
    for seed in range(40):
        drive = Drive(skips=frozenset({"sync at start"}))
        drive.state = OLD
        drive.write(NEW, PROTOCOL.index("rename") + 1)
        assert drive.load() == NEW
        lost.add(after_power_loss(drive, seed))

    assert OLD in lost


def test_a_full_drive_changes_nothing() -> None:
    drive = Drive(is_full=True)
    drive.state = OLD
    with pytest.raises(DriveFullError):
        drive.write(NEW)

    assert drive.load() == OLD


def test_the_real_store_takes_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_sync, real_replace, real_open = files._sync, Path.replace, os.open

    def sync(descriptor: int) -> None:
        steps.append("sync folder" if Path(f"/dev/fd/{descriptor}").is_dir() else "sync file")
        real_sync(descriptor)

    def replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return real_replace(self, target)

    def open_(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            steps.extend(["create", "write"])
        return real_open(path, flags, mode)

    monkeypatch.setattr(files, "_sync", sync)
    monkeypatch.setattr(Path, "replace", replace)
    monkeypatch.setattr(os, "open", open_)
    store = StateStore(tmp_path)
    store.save(NEW)
    assert tuple(steps) == PROTOCOL

    steps.clear()
    assert store.load() == NEW
    assert steps == ["sync folder"], "what was read must be on the drive before anybody acts on it"
