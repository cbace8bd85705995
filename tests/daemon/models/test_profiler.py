import asyncio
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.tiny_models import write_config
from macmesh_daemon.models.errors import (
    LocalArchitectureError,
    LocalModelFolderError,
    LocalProfileProcessError,
)
from macmesh_daemon.models.folder import ModelFolder, read_folder
from macmesh_daemon.models.profiler import profile_key, profile_model
from macmesh_placement import ModelProfile

EXAMPLE = Path(__file__).parents[3] / "docs" / "examples" / "minimax-m2.5-5bit.profile.json"


@pytest.fixture
def folder(tmp_path: Path) -> ModelFolder:
    return read_folder(write_config(tmp_path / "model", "llama"), model_id="tiny", require_weights=False)


def program(text: str) -> list[str]:
    """A stand-in for the profile process."""
    return [sys.executable, "-c", text]


def printing(path: Path) -> list[str]:
    return program(f"print(open({str(path)!r}).read())")


async def test_a_profile_is_kept_and_given_its_new_name(folder: ModelFolder, tmp_path: Path) -> None:
    cache = tmp_path / "cache" / "profiles"
    first = await profile_model(folder, cache, command=printing(EXAMPLE))
    kept = list(cache.iterdir())
    assert [path.name for path in kept] == [f"{profile_key(folder)}.profile.json"]
    renamed = read_folder(folder.path, model_id="other", require_weights=False)
    again = await profile_model(renamed, cache, command=program("raise SystemExit(9)"))
    assert again.model_id == "other"
    assert again.layers == first.layers


async def test_a_damaged_kept_profile_is_made_anew(folder: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / f"{profile_key(folder)}.profile.json").write_text("{")
    profile = await profile_model(folder, tmp_path, command=printing(EXAMPLE))
    assert profile == ModelProfile.from_json_text(EXAMPLE.read_text())


def test_the_key_follows_the_content(folder: ModelFolder) -> None:
    key = profile_key(folder)
    write_config(folder.path, "llama", num_hidden_layers=5)
    assert profile_key(read_folder(folder.path, require_weights=False)) != key


@pytest.mark.parametrize(
    ("text", "error", "named"),
    [
        ("raise SystemExit(3)", LocalProfileProcessError, "exit code 3"),
        ("import sys; sys.exit('it broke')", LocalProfileProcessError, "it broke"),
        ("import os; os.kill(os.getpid(), 9)", LocalProfileProcessError, "signal 9"),
        ("print('hello')", LocalProfileProcessError, "no profile"),
        ("import os; os.write(1, bytes([255]))", LocalProfileProcessError, "no profile"),
    ],
)
async def test_a_bad_end_is_told(
    folder: ModelFolder, tmp_path: Path, text: str, error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        await profile_model(folder, tmp_path / "cache", command=program(text))


@pytest.mark.parametrize(
    ("reason", "error"),
    [
        ("UNSUPPORTED_ARCHITECTURE", LocalArchitectureError),
        ("MODEL_BROKEN", LocalModelFolderError),
        ("SOMETHING_ELSE", LocalProfileProcessError),
    ],
)
async def test_the_error_object_becomes_the_error(
    folder: ModelFolder, tmp_path: Path, reason: str, error: type[Exception]
) -> None:
    line = json.dumps({"error": {"reason": reason, "message": "because of this"}})
    text = f"import sys; print('chatter', file=sys.stderr); print({line!r}, file=sys.stderr); sys.exit(2)"
    with pytest.raises(error, match="because of this"):
        await profile_model(folder, tmp_path, command=program(text))


async def test_a_process_that_hangs_is_killed_with_its_children(folder: ModelFolder, tmp_path: Path) -> None:
    """Both hold a pipe open: its end of file says that both are gone."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    script = f"exec 3>{shlex.quote(str(pipe))}; sleep 60 & wait"  # a shell has it open in no time
    command = ["/bin/sh", "-c", script]
    profiling = profile_model(folder, tmp_path / "cache", deadline_seconds=2.0, command=command)
    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        ended = tasks.create_task(asyncio.to_thread(pipe.read_bytes), name="both ended")
        with pytest.raises(LocalProfileProcessError, match="more than 2 s"):
            await profiling
        assert await ended == b""


@pytest.mark.process
async def test_the_real_process_profiles_a_folder(folder: ModelFolder, tmp_path: Path) -> None:
    profile = await profile_model(folder, tmp_path / "cache", deadline_seconds=120)
    assert profile.model_id == "tiny"
    assert profile.digest == folder.digest
    assert profile.layer_count == 4
    assert profile.layers[0].caches[0].bytes_per_token == 2 * 2 * 8 * 2


@pytest.mark.process
def test_the_daemon_side_never_imports_mlx() -> None:
    text = (
        "import sys, macmesh_daemon.models.profiler, macmesh_placement\n"
        "sys.exit(any(name.split('.')[0] in ('mlx', 'mlx_lm') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", text], timeout=120, check=False).returncode == 0
