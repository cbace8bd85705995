"""Targets, credentials and why a socket cannot be connected to."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

import macmesh
from macmesh._targets import check_owner, parse_target, unix_failure
from macmesh.credentials import Credentials
from macmesh.errors import (
    LocalArgumentError,
    LocalCredentialsError,
    LocalDaemonNotRunningError,
    LocalSocketForbiddenError,
)

PEM = b"-----BEGIN X-----\n-----END X-----\n"
CREDENTIALS = Credentials(PEM, PEM, PEM, addresses=("10.0.0.1:52415", "10.0.0.2:52415"))


@pytest.mark.parametrize(
    ("target", "address"),
    [
        ("unix:///run/m.sock", "unix:///run/m.sock"),
        ("unix:/run/m.sock", "unix:///run/m.sock"),
        ("/run/m.sock", "unix:///run/m.sock"),
        (Path("/run/m.sock"), "unix:///run/m.sock"),
        (Path("/run/../run/m.sock"), "unix:///run/m.sock"),
    ],
)
def test_unix_targets(target: Any, address: str) -> None:
    parsed = parse_target(target)
    assert (parsed.address, parsed.socket, parsed.tls()) == (address, Path("/run/m.sock"), None)


@pytest.mark.parametrize("target", ["studio.local:52415", "192.168.1.4:1", "[fe80::1%en5]:65535"])
def test_tcp_targets(target: Any) -> None:
    parsed = parse_target(target, CREDENTIALS)
    assert parsed.address == f"dns:///{target}"
    assert ("grpc.ssl_target_name_override", "node.macmesh") in parsed.options()
    assert ("grpc.enable_http_proxy", 0) in parsed.options()


def test_credentials_bring_their_address() -> None:
    assert parse_target(None, CREDENTIALS).address == "dns:///10.0.0.1:52415"


@pytest.mark.parametrize(
    ("target", "credentials", "message"),
    [
        ("studio", CREDENTIALS, "is no target"),
        ("studio:0", CREDENTIALS, "is no target"),
        ("studio:65536", CREDENTIALS, "is no target"),
        ("http://studio:80", CREDENTIALS, "is no target"),
        ("", None, "is no target"),
        ("studio:80", None, "needs credentials"),
        ("/run/m.sock", CREDENTIALS, "takes no credentials"),
        (None, Credentials(PEM, PEM, PEM), "name no address"),
    ],
)
def test_bad_targets(target: Any, credentials: Credentials | None, message: str) -> None:
    with pytest.raises(LocalArgumentError, match=message):
        parse_target(target, credentials)


def test_the_default_target_is_the_environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MACMESH_SOCKET", str(tmp_path / "m.sock"))
    with macmesh.Client() as client:
        assert client.target == f"unix://{tmp_path / 'm.sock'}"


def test_a_default_socket_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "m.sock"
    path.touch()
    monkeypatch.setenv("MACMESH_SOCKET", str(path))
    check_owner(parse_target(None))
    monkeypatch.setattr(os, "getuid", lambda: path.stat().st_uid + 1)
    if path.stat().st_uid == 0:
        os.chown(path, 12345, -1)
    with pytest.raises(LocalSocketForbiddenError, match="belongs to user id"):
        macmesh.Client()
    check_owner(parse_target(path))  # named: the caller trusts it


def test_credentials_round_trip_without_showing_the_key(tmp_path: Path) -> None:
    secret = b"-----BEGIN PRIVATE KEY-----\nhush\n-----END PRIVATE KEY-----\n"
    credentials = Credentials(PEM, PEM, secret, "n1.node.macmesh", ("h:1",))
    path = tmp_path / "c.json"
    path.write_text(credentials.to_json())
    path.chmod(0o600)
    assert Credentials.from_file(path) == credentials
    assert "hush" not in repr(credentials)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "is not JSON"),
        ("[]", "does not say"),
        (json.dumps({"format": "other/1"}), "does not say"),
        (json.dumps({"format": "macmesh-credentials/1", "ca_pem": "x"}), "misses certificate_pem, key_pem"),
        (
            json.dumps(
                {"format": "macmesh-credentials/1", "ca_pem": "x", "certificate_pem": "x", "key_pem": "x"}
            ),
            "ca_pem holds no PEM",
        ),
    ],
)
def test_bad_credentials_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.json"
    if content is not None:
        path.write_text(content)
        path.chmod(0o600)
    with pytest.raises(LocalCredentialsError, match=message):
        Credentials.from_file(path)


def test_why_a_socket_fails(socket_file: Path, tmp_path: Path) -> None:
    missing = unix_failure(socket_file)
    assert isinstance(missing, LocalDaemonNotRunningError)
    assert "there is no socket" in missing.message
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(socket_file))
        left = unix_failure(socket_file)
        assert isinstance(left, LocalDaemonNotRunningError)
        assert "left over" in left.message
        server.listen(0)
        assert unix_failure(socket_file) is None
        assert unix_failure(socket_file) is None  # the first probe fills the backlog: still somebody
    plain = tmp_path / "plain"
    plain.touch()
    assert isinstance(unix_failure(plain), LocalDaemonNotRunningError)
    too_long = unix_failure(Path("/run") / ("x" * 200))
    assert isinstance(too_long, LocalDaemonNotRunningError)
