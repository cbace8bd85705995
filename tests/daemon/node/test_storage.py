"""State survives crashes or is refused."""

import fcntl
import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon import files
from macmesh_daemon.cluster.messages import ClusterDocument, Epoch, Member, Plan
from macmesh_daemon.cluster.state import PersistentState
from macmesh_daemon.node.errors import LocalStateCorrupt, LocalStateNotWritable
from macmesh_daemon.node.storage import StateStore

OLD = PersistentState(generation=1, term=3, voted_for="a")
NEW = PersistentState(
    generation=1,
    term=4,
    voted_for="b",
    document=ClusterDocument(1, 4, 1, members=(Member("a", ("h:1",), voter=True),)),
    promised=Epoch(1, 4, 1),
    promised_plan=Plan(Epoch(1, 4, 1)),
)


class PowerLossError(Exception):
    """The machine stopped here."""


def test_a_node_that_never_stored_anything_has_the_blank_state(tmp_path: Path) -> None:
    assert StateStore(tmp_path).load() == PersistentState()


def test_the_last_saved_state_is_loaded(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "made" / "on the way")
    store.save(OLD)
    store.save(NEW)

    assert StateStore(tmp_path / "made" / "on the way").load() == NEW
    assert store.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("step", ["open", "fdopen", "flush", "replace", "second flush"])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    store = StateStore(tmp_path)
    store.save(OLD)
    calls = 0

    def die(*_args: object) -> int:
        nonlocal calls
        calls += 1
        if step == "second flush" and calls == 1:
            return 0
        raise PowerLossError

    with monkeypatch.context() as patch:
        if step in {"open", "fdopen"}:
            patch.setattr(os, step, die)
        elif step == "replace":
            patch.setattr(Path, "replace", die)
        else:
            patch.setattr(files, "_sync", die)
        with pytest.raises(PowerLossError):
            store.save(NEW)

    assert StateStore(tmp_path).load() == (NEW if step == "second flush" else OLD)


def test_flushes_come_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    rename = Path.replace

    def renamed(source: Path, target: Path) -> Path:
        order.append("rename")
        return rename(source, target)

    def flushed(descriptor: int) -> None:
        order.append("flush folder" if os.path.isdir(f"/dev/fd/{descriptor}") else "flush file")  # noqa: PTH112  of a descriptor

    monkeypatch.setattr(Path, "replace", renamed)
    monkeypatch.setattr(files, "_sync", flushed)
    StateStore(tmp_path).save(NEW)

    assert order == ["flush file", "rename", "flush folder"]


@given(data=st.data())
def test_any_damage_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    store = StateStore(tmp_path_factory.mktemp("state"))
    store.save(NEW)
    content = bytearray(store.path.read_bytes())
    if data.draw(st.booleans(), label="torn"):
        damaged = bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        damaged = bytes(content)
    store.path.write_bytes(damaged)

    with pytest.raises(LocalStateCorrupt, match=str(store.path)) as caught:
        store.load()
    assert caught.value.path == store.path


def test_a_full_disk_is_named_and_keeps_the_old_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(tmp_path)
    store.save(OLD)

    def full(*_args: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files, "_sync", full)
        with pytest.raises(LocalStateNotWritable, match="No space left"):
            store.save(NEW)

    assert store.load() == OLD


def test_on_macos_the_flush_reaches_the_medium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", lambda _fd, command: called.append(command))
    StateStore(tmp_path).save(NEW)

    assert called == [51, 51]
