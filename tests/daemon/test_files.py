import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from macmesh_daemon.files import (
    FolderLock,
    LocalFolderInUseError,
    LocalFolderNotPrivateError,
    make_guarded_folder,
    write_durably,
)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old", mode=0o644)
    write_durably(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_else_may_write_to_a_guarded_folder(tmp_path: Path) -> None:
    folder = tmp_path / "private"
    make_guarded_folder(folder)
    make_guarded_folder(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(LocalFolderNotPrivateError, match="link is not a folder of this user"):
        make_guarded_folder(tmp_path / "link")
    folder.chmod(0o755)
    make_guarded_folder(folder)
    folder.chmod(0o770)
    with pytest.raises(LocalFolderNotPrivateError):
        make_guarded_folder(folder)
    folder.chmod(0o700)


def test_a_folder_of_somebody_else_is_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_guarded_folder(tmp_path / "folder")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(LocalFolderNotPrivateError):
        make_guarded_folder(tmp_path / "folder")


@pytest.mark.process
def test_a_folder_has_one_owner_until_it_ends(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from macmesh_daemon.files import FolderLock\n"
        "lock = FolderLock.acquire(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"held\n"
            with pytest.raises(LocalFolderInUseError, match=f"process {owner.pid}\\b.*{tmp_path}"):
                FolderLock.acquire(tmp_path)
        finally:
            owner.kill()
            owner.wait(60)
    with FolderLock.acquire(tmp_path) as lock, pytest.raises(LocalFolderInUseError):
        FolderLock.acquire(tmp_path)
    lock.release()
    FolderLock.acquire(tmp_path).release()
