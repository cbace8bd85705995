import argparse
import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.config import (
    Config,
    ConfigError,
    LocalConfigFileError,
    LocalConfigKeyError,
    LocalConfigValueError,
    add_arguments,
    flags_from,
    load_config,
    replace,
    split_address,
)
from macmesh_daemon.config.values import UnfitValueError, parse_size


@pytest.fixture(autouse=True)
def _no_files_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "none-either"))


def write(path: Path, text: str) -> Path:
    path.write_text(text, "utf-8")
    return path


def test_the_defaults_are_valid() -> None:
    assert load_config(env={}) == Config()


def test_flags_win_over_environment_over_user_over_system(tmp_path: Path) -> None:
    system = write(
        tmp_path / "system.toml", "listen_port = 1\nlog_level = 'error'\nmdns = false\nseeds=['s:1']"
    )
    user = write(tmp_path / "user.toml", "listen_port = 2\nlog_level = 'warning'\nmdns = true")
    env = {"MACMESH_LISTEN_PORT": "3", "MACMESH_LOG_LEVEL": "debug", "HOME": "/"}
    config = load_config({"listen_port": "4"}, env=env, config_path=user, system_path=system)
    assert (config.listen_port, config.log_level, config.mdns, config.seeds) == (4, "debug", True, ("s:1",))


def test_mlxs_variable_stands_for_a_setting_that_is_set_nowhere_else(tmp_path: Path) -> None:
    mlx = {"MLX_JACCL_NUM_BUFFERS": "16"}
    system = write(tmp_path / "system.toml", "link_num_buffers = 4")
    assert load_config(env=mlx).link_num_buffers == 16
    assert load_config(env=mlx | {"MACMESH_LINK_NUM_BUFFERS": "32"}).link_num_buffers == 32
    assert load_config(env=mlx, system_path=system).link_num_buffers == 4
    with pytest.raises(LocalConfigValueError, match="MLX_JACCL_NUM_BUFFERS: link_num_buffers: 0"):
        load_config(env={"MLX_JACCL_NUM_BUFFERS": "0"})


def test_the_user_file_is_found_in_its_place_and_by_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "macmesh").mkdir()
    write(tmp_path / "macmesh" / "config.toml", "listen_port = 7")
    other = write(tmp_path / "other.toml", "listen_port = 8")
    assert load_config(env={}).listen_port == 7
    assert load_config(env={"MACMESH_CONFIG": str(other)}).listen_port == 8


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("listen_prt = 1", LocalConfigKeyError, ["listen_prt", "did you mean listen_port"]),
        ("[cluster]\nseeds = []", LocalConfigKeyError, ["cluster"]),
        ("listen_port = '1'", LocalConfigValueError, ["listen_port", "whole number"]),
        ("listen_port = true", LocalConfigValueError, ["listen_port", "whole number"]),
        ("listen_port = 70000", LocalConfigValueError, ["listen_port", "65535"]),
        ("mdns = 'yes'", LocalConfigValueError, ["mdns", "true or false"]),
        ("seeds = 'a:1'", LocalConfigValueError, ["seeds", "list"]),
        ("seeds = ['a']", LocalConfigValueError, ["seeds", "host:port"]),
        ("listen_host = 'mac.local'", LocalConfigValueError, ["listen_host", "IPv4 or IPv6"]),
        (
            "advertise_addresses = ['10.0.0.1:1']",
            LocalConfigValueError,
            ["advertise_addresses", "10.0.0.1:1"],
        ),
        ("log_level = 'loud'", LocalConfigValueError, ["log_level", "debug, info"]),
        ("usable_bytes = '12 parsecs'", LocalConfigValueError, ["usable_bytes", "27GB"]),
        ("usable_bytes = -1", LocalConfigValueError, ["usable_bytes", "0"]),
        ("lease_seconds = nan", LocalConfigValueError, ["lease_seconds", "number"]),
        ("lease_seconds = 1.5", LocalConfigValueError, ["lease_seconds", "election_timeout_min_seconds"]),
        ("data_dir = ''", LocalConfigValueError, ["data_dir", "path"]),
        ("listen_port = ", LocalConfigFileError, ["TOML"]),
    ],
)
def test_a_mistake_names_the_file_and_the_key(
    tmp_path: Path, text: str, error: type[ConfigError], words: list[str]
) -> None:
    path = write(tmp_path / "config.toml", text)
    with pytest.raises(error) as caught:
        load_config(env={}, config_path=path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(LocalConfigFileError, match="no such file"):
        load_config(env={}, config_path=tmp_path / "missing.toml")
    with pytest.raises(LocalConfigFileError, match="no such file"):
        load_config(env={"MACMESH_CONFIG": str(tmp_path / "missing.toml")})


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(LocalConfigKeyError, match=r"MACMESH_SEED.*MACMESH_SEEDS"):
        load_config(env={"MACMESH_SEED": "a:1"})


def test_text_becomes_the_type_of_the_field() -> None:
    config = load_config(
        env={
            "MACMESH_SEEDS": "mac1:27450, [fe80::1%en0]:27450",
            "MACMESH_MODELS_FOLDERS": '["/a,b", "~/models"]',
            "MACMESH_MDNS": "off",
            "MACMESH_USABLE_BYTES": "25GiB",
            "MACMESH_LEASE_SECONDS": "0.7",
        }
    )
    assert config.seeds == ("mac1:27450", "[fe80::1%en0]:27450")
    assert config.models_folders == (Path("/a,b"), Path.home() / "models")
    assert config.mdns is False
    assert config.usable_bytes == 25 << 30
    assert config.lease_seconds == 0.7


def test_every_field_has_a_flag() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(
        ["--no-mdns", "--listen-port", "0", "--usable-bytes", "3GB", "--seeds", "a:1,b:2", "--config", "/x"]
    )
    flags = flags_from(arguments)
    assert flags == {"mdns": False, "listen_port": "0", "usable_bytes": "3GB", "seeds": "a:1,b:2"}
    config = load_config(flags, env={})
    assert (config.mdns, config.listen_port, config.usable_bytes) == (False, 0, 3 * 10**9)
    assert len(parser.format_help().split("--")) > len(flags)


def test_a_changed_copy_is_checked_like_the_original() -> None:
    assert replace(Config(), listen_port=0).listen_port == 0
    with pytest.raises(LocalConfigKeyError):
        replace(Config(), port=0)
    with pytest.raises(LocalConfigValueError, match="less than"):
        replace(Config(), heartbeat_interval_seconds=0.9)


def test_the_socket_lies_in_the_data_folder_or_in_a_short_place(tmp_path: Path) -> None:
    short = Config(data_dir=Path("/data"))
    assert short.resolved_socket_path() == Path("/data/macmeshd.sock")
    long = Config(data_dir=tmp_path / ("x" * 100))
    assert long.resolved_socket_path().parent == Path(f"/tmp/macmesh-{os.getuid()}")  # noqa: S108  nothing is made
    assert len(os.fsencode(long.resolved_socket_path())) <= 100
    assert long.resolved_socket_path() != Config(data_dir=tmp_path / ("y" * 100)).resolved_socket_path()
    chosen = Config(data_dir=tmp_path, socket_path=Path("/run/s"))
    assert chosen.resolved_socket_path() == Path("/run/s")


def test_peers_are_told_what_they_can_reach() -> None:
    assert Config().announced_addresses() == ()
    assert Config(listen_host="::").announced_addresses() == ()
    assert Config(listen_host="127.0.0.1").announced_addresses() == ("127.0.0.1",)
    assert Config(advertise_addresses=("10.0.0.1",)).announced_addresses() == ("10.0.0.1",)


@given(st.integers(0, 2**63))
def test_plain_bytes_are_exact(number: int) -> None:
    assert parse_size(str(number)) == number


@pytest.mark.parametrize(
    ("text", "size"), [("27GB", 27 * 10**9), ("1.5 GiB", 3 << 29), ("96 gib", 96 << 30), ("2K", 2000)]
)
def test_sizes_have_decimal_and_binary_suffixes(text: str, size: int) -> None:
    assert parse_size(text) == size


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with contextlib.suppress(UnfitValueError):  # and nothing else is raised
        assert parse_size(text) >= 0


@pytest.mark.parametrize(
    "text", ["", "a", ":1", "a:", "a:0", "a:65536", "a:x", "::1:80", "[]:1", "a b:1", "a:²"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)


def test_addresses_are_split() -> None:
    assert split_address("mac.local:80") == ("mac.local", 80)
    assert split_address("[fe80::1%en0]:80") == ("fe80::1%en0", 80)
