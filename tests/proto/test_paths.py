"""Where the daemon's socket lies."""

import os
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh import default_data_folder, default_socket_path, socket_path
from macmesh.paths import LONGEST_SOCKET_PATH_BYTES


def test_the_data_folder_is_platformdirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_data_folder() == Path(platformdirs.user_data_dir("macmesh", appauthor=False))
    monkeypatch.setenv("XDG_DATA_HOME", "/data/ann")
    assert default_data_folder() == Path(platformdirs.user_data_dir("macmesh", appauthor=False))


@pytest.mark.parametrize(
    ("environ", "platform", "expected"),
    [
        (
            {"HOME": "/Users/ann"},
            "darwin",
            "/Users/ann/Library/Application Support/macmesh/macmeshd.sock",
        ),
        (
            {"HOME": "/Users/ann", "XDG_DATA_HOME": "/x"},
            "darwin",
            "/Users/ann/Library/Application Support/macmesh/macmeshd.sock",
        ),
        ({"HOME": "/home/ann"}, "linux", "/home/ann/.local/share/macmesh/macmeshd.sock"),
        ({"HOME": "/home/ann", "XDG_DATA_HOME": "/x"}, "linux", "/x/macmesh/macmeshd.sock"),
        (
            {"HOME": "/home/ann", "XDG_DATA_HOME": "  "},
            "linux",
            "/home/ann/.local/share/macmesh/macmeshd.sock",
        ),
        ({"HOME": "/home/ann", "MACMESH_SOCKET": "/run/m.sock"}, "linux", "/run/m.sock"),
        ({"MACMESH_SOCKET_PATH": "/run/p.sock", "MACMESH_DATA_DIR": "/d"}, "linux", "/run/p.sock"),
        ({"MACMESH_SOCKET": "/run/m.sock", "MACMESH_SOCKET_PATH": "/run/p.sock"}, "linux", "/run/m.sock"),
        ({"HOME": "/home/ann", "MACMESH_DATA_DIR": "/d"}, "darwin", "/d/macmeshd.sock"),
    ],
)
def test_default_socket_path(environ: dict[str, str], platform: str, expected: str) -> None:
    assert default_socket_path(environ, platform, uid=501) == Path(expected)


def test_a_long_folder_gets_a_short_socket() -> None:
    folder = Path("/home") / ("a" * 90)
    path = socket_path(folder, uid=501)
    assert path.parent == Path("/tmp/macmesh-501")  # noqa: S108  the documented place
    assert path == socket_path(folder, uid=501)
    assert path != socket_path(folder / "b", uid=501)


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_every_socket_path_is_short_enough(name: str) -> None:
    path = socket_path(Path("/") / name.lstrip("/"), uid=2**31)
    assert len(os.fsencode(path)) <= LONGEST_SOCKET_PATH_BYTES
