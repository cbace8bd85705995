import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import constants, snapshot_download
from huggingface_hub.utils._http import close_session

from macmesh_daemon.models import errors
from macmesh_daemon.models.fake_hub import FakeHub
from macmesh_daemon.models.folder import CONFIG_NAME, INDEX_NAME, is_hub_id, read_folder
from macmesh_daemon.models.hub import Hub, read_hub
from macmesh_daemon.models.profiler import profile_hub_model, profile_model
from macmesh_placement import ModelProfile
from zoo import write_model

MODEL = "someone/tiny-llama"


@pytest.fixture(autouse=True)
def own_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nonexistent/token")
    yield
    close_session()


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_model(tmp_path_factory.mktemp("hub") / "m", "llama", dtype="bfloat16", shards=3)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "original").mkdir()
    (folder / "original" / "model.safetensors").write_bytes(b"another format's")
    return folder


@pytest.fixture
def hub(model_folder: Path) -> Iterator[FakeHub]:
    with FakeHub({MODEL: model_folder}).running() as fake:
        yield fake


def read(fake: FakeHub, to: Path, model: str = MODEL, revision: str | None = None, **limits: float) -> Any:
    return read_hub(model, to, revision=revision, hub=Hub(endpoint=fake.endpoint, **limits))


def test_a_hub_and_its_folder_are_the_same_model(hub: FakeHub, model_folder: Path, tmp_path: Path) -> None:
    remote, local = read(hub, tmp_path), read_folder(model_folder)
    assert remote.model_id == MODEL
    assert remote.digest == local.digest
    assert (remote.config, remote.tensors, remote.weight_files) == (
        local.config,
        local.tensors,
        local.weight_files,
    )


def test_only_headers_are_fetched(hub: FakeHub, model_folder: Path, tmp_path: Path) -> None:
    read(hub, tmp_path)
    headers = 0
    for path in model_folder.glob("model*.safetensors"):
        headers += 8 + int(np.fromfile(path, dtype="<u8", count=1)[0])
    small = sum((model_folder / name).stat().st_size for name in (CONFIG_NAME, INDEX_NAME))
    assert hub.served_bytes == small + headers
    assert hub.served_bytes < sum(path.stat().st_size for path in model_folder.glob("*")) // 10


def test_stand_ins_take_no_room(hub: FakeHub, tmp_path: Path) -> None:
    read(hub, tmp_path)
    shards = list(tmp_path.glob("model*.safetensors"))
    assert all(path.stat().st_blocks * 512 < path.stat().st_size // 2 for path in shards)


def test_all_is_read_from_one_commit(hub: FakeHub, tmp_path: Path) -> None:
    hub.revisions = ("main", "v2")
    read(hub, tmp_path, revision="v2")
    assert "/revision/v2" in hub.served[0].path
    assert all(hub.commit(MODEL) in answer.path for answer in hub.served[1:])


@pytest.mark.parametrize(
    ("change", "error", "named"),
    [
        ({"models": {}}, errors.RemoteModelNotFoundError, MODEL),
        ({"revisions": ()}, errors.RemoteModelNotFoundError, "at other"),
        ({"gated": frozenset({MODEL})}, errors.RemoteModelGatedError, "gated: accept its terms"),
        ({"fails": 500}, errors.RemoteHubUnavailableError, "answers 500"),
        ({"fails": 429}, errors.RemoteHubUnavailableError, "answers 429"),
        ({"fails": 403}, errors.RemoteModelGatedError, "HF_TOKEN"),
        ({"ignores_ranges": True}, errors.RemoteHubUnavailableError, "does not serve parts"),
    ],
)
def test_what_a_hub_refuses_is_told(
    hub: FakeHub, tmp_path: Path, change: dict[str, Any], error: type[Exception], named: str
) -> None:
    for name, value in change.items():
        setattr(hub, name, value)
    with pytest.raises(error, match=named):
        read(hub, tmp_path, revision="other" if "revisions" in change else None)


def test_a_token_opens_a_gated_model(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.gated = frozenset({MODEL})
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(errors.RemoteModelGatedError):
        read(hub, tmp_path)
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert read(hub, tmp_path).model_id == MODEL


def test_a_silent_hub_is_given_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.silent = True
    with pytest.raises(errors.RemoteHubUnavailableError, match="Timeout"):
        read(hub, tmp_path, request_timeout_seconds=0.1)


def test_all_requests_share_a_deadline(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(errors.RemoteHubUnavailableError, match="more than 0 s"):
        read(hub, tmp_path, deadline_seconds=0.0)


def test_no_hub_is_told(tmp_path: Path, model_folder: Path) -> None:
    fake = FakeHub({MODEL: model_folder})
    with fake.running():
        pass
    with pytest.raises(errors.RemoteHubUnavailableError, match="cannot be reached"):
        read(fake, tmp_path)


def test_offline_mode_is_kept(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(errors.LocalOfflineError, match="HF_HUB_OFFLINE"):
        read(hub, tmp_path)
    assert not hub.served


@pytest.mark.parametrize("name", ["", "llama", "a/b/c", "../x", "a/", "/a/b", "a b/c", "./folder"])
def test_what_is_no_hub_id(name: str, hub: FakeHub, tmp_path: Path) -> None:
    assert not is_hub_id(name)
    with pytest.raises(errors.LocalModelNotFoundError, match="organisation/model"):
        read(hub, tmp_path, name)


def header(text: bytes, data: bytes = b"") -> bytes:
    return len(text).to_bytes(8, "little") + text + data


TENSOR = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}'


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"abc", "truncated or no safetensors"),
        ((1 << 40).to_bytes(8, "little") + b"{}", "truncated or no safetensors"),
        (header(b"[]"), "not a JSON object"),
        (header(b""), "not JSON"),
        (header(TENSOR, bytes(15)), "truncated"),
        (header(TENSOR, bytes(17)), "too long"),
        (header(TENSOR.replace(b"F32", b"F64"), bytes(16)), "cannot have 16 bytes"),
    ],
)
def test_a_header_that_lies_is_told(content: bytes, named: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / CONFIG_NAME).write_text('{"model_type": "llama"}')
    (tmp_path / "m" / "model.safetensors").write_bytes(content)
    (tmp_path / "to").mkdir()
    with (
        FakeHub({MODEL: tmp_path / "m"}).running() as fake,
        pytest.raises(errors.RemoteModelBrokenError, match=named) as told,
    ):
        read(fake, tmp_path / "to")
    assert f"{MODEL}/model.safetensors" in str(told.value)
    assert str(tmp_path) not in str(told.value)


@pytest.mark.parametrize(
    ("files", "named"),
    [({"README.md": "x"}, CONFIG_NAME), ({CONFIG_NAME: "{}", "model.gguf": "x"}, "no safetensors weights")],
)
def test_a_repository_without_a_model_is_told(files: dict[str, str], named: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with (
        FakeHub({MODEL: tmp_path}).running() as fake,
        pytest.raises(errors.RemoteModelBrokenError, match=named),
    ):
        read(fake, tmp_path / "to")


def test_the_fake_serves_whole_files_to_the_real_client(
    hub: FakeHub, model_folder: Path, tmp_path: Path
) -> None:
    path = snapshot_download(MODEL, endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    for file in model_folder.glob("*.*"):
        assert (Path(path) / file.name).read_bytes() == file.read_bytes()


@pytest.mark.process
async def test_the_profile_of_a_hub_is_the_profile_of_the_folder(
    hub: FakeHub, model_folder: Path, tmp_path: Path
) -> None:
    from_hub = await profile_hub_model(MODEL, tmp_path / "a", hub_endpoint=hub.endpoint, deadline_seconds=120)
    local = await asyncio.to_thread(read_folder, model_folder, model_id=MODEL)
    from_folder = await profile_model(local, tmp_path / "b", deadline_seconds=120)
    assert from_hub.to_json_text() == from_folder.to_json_text()
    assert (
        from_hub.total_weight_bytes
        == json.loads((model_folder / INDEX_NAME).read_text())["metadata"]["total_size"]
    )


@pytest.mark.process
def test_the_program_takes_a_model_on_a_hub(hub: FakeHub, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "macmesh_daemon.engine.profile_main"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        [*command, MODEL, "--hub-endpoint", hub.endpoint, "--revision", "main"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    profile = ModelProfile.from_json_text(ended.stdout)
    assert (profile.model_id, profile.weights_source) == (MODEL, "headers")
    assert list(tmp_path.iterdir()) == []
