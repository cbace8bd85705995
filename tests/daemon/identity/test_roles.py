"""What certificates say about their holders, and who can make them say it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from macmesh_daemon.identity import (
    GRACE,
    LocalClientError,
    LocalCredentialsError,
    LocalNoClusterError,
    RemoteUntrustedError,
    Role,
    ca_transfer,
    caller_of_certificate,
    create_cluster_ca,
    export_ca,
    holds_ca_key,
    import_ca_key,
    init_cluster,
    issue_node_certificate,
    key_of_request,
    make_certificate_request,
    node_id_of,
    open_exported_ca,
    provision_node,
)
from macmesh_daemon.identity.clients import ClientRecord, issue_client_certificate
from macmesh_daemon.identity.keys import new_private_key, private_key_to_pem
from macmesh_daemon.identity.renewal import ca_warning_of, renewal_is_due, warning_of

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def test_a_request_proves_its_key_and_says_nothing_else() -> None:
    key = new_private_key()
    request = make_certificate_request(private_key_to_pem(key))
    assert key_of_request(request) == key.public_key()
    with pytest.raises(RemoteUntrustedError, match="not signed"):
        key_of_request(request[:-1] + bytes([request[-1] ^ 1]))
    for junk in (b"", b"junk", b"\x30\x80", request[:40], request * 10):
        with pytest.raises(RemoteUntrustedError):
            key_of_request(junk)


def test_a_node_is_a_node() -> None:
    ca, key = create_cluster_ca(now=NOW), new_private_key()
    certificate = x509.load_pem_x509_certificate(issue_node_certificate(ca, key.public_key(), now=NOW))
    caller = caller_of_certificate(certificate)
    assert (caller.role, caller.caller_id) == (Role.NODE, node_id_of(key.public_key()))


@pytest.mark.parametrize("role", ["user", "admin", "observer"])
def test_a_client_has_the_role_of_its_certificate_and_is_no_server(role: str) -> None:
    ca, key = create_cluster_ca(now=NOW), new_private_key()
    pem, record = issue_client_certificate(ca, key.public_key(), name="laptop", role=role, days=30, now=NOW)
    certificate = x509.load_pem_x509_certificate(pem)
    caller = caller_of_certificate(certificate)
    assert (caller.role, caller.caller_id) == (Role(role), node_id_of(key.public_key()))
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == []
    assert certificate.not_valid_before_utc == NOW - timedelta(days=2)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=30)
    assert ClientRecord.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    ("name", "role", "days"),
    [("", "user", 1), ("a b", "user", 1), ("x" * 65, "user", 1), ("a", "node", 1), ("a", "local", 1),
     ("a", "user", 0), ("a", "user", 826)],
)  # fmt: skip
def test_impossible_clients(name: str, role: str, days: int) -> None:
    with pytest.raises(LocalClientError):
        issue_client_certificate(
            create_cluster_ca(), new_private_key().public_key(), name=name, role=role, days=days
        )


def test_the_ca_is_nobody() -> None:
    with pytest.raises(RemoteUntrustedError):
        caller_of_certificate(x509.load_pem_x509_certificate(create_cluster_ca().ca_pem))


def test_the_ca_key_moves_under_a_passphrase_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ca_transfer, "_SCRYPT_N", 1 << 10)  # a guess is to cost half a second, a test is not
    ca = init_cluster(tmp_path / "founder")
    provision_node(tmp_path / "second", ca)
    copy = export_ca(ca, "correct horse battery")
    assert ca.ca_key_pem.splitlines()[1] not in copy
    assert not holds_ca_key(tmp_path / "second")
    import_ca_key(tmp_path / "second", open_exported_ca(copy, "correct horse battery"))
    assert holds_ca_key(tmp_path / "second")
    assert (tmp_path / "second" / "ca.key").stat().st_mode & 0o777 == 0o600
    with pytest.raises(LocalCredentialsError, match="passphrase is wrong"):
        open_exported_ca(copy, "correct horse batterz")
    with pytest.raises(LocalCredentialsError, match="fewer than"):
        export_ca(ca, "short")


def test_the_ca_of_another_cluster_is_not_imported(tmp_path: Path) -> None:
    with pytest.raises(LocalNoClusterError):
        import_ca_key(tmp_path / "nobody", create_cluster_ca())
    init_cluster(tmp_path / "ours")
    before = (tmp_path / "ours" / "ca.key").read_bytes()
    with pytest.raises(LocalCredentialsError, match="belongs to"):
        import_ca_key(tmp_path / "ours", create_cluster_ca())
    assert (tmp_path / "ours" / "ca.key").read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": "macmesh-ca/1"}', b'{"format": "other"}'])
def test_a_damaged_copy_of_the_ca(content: bytes) -> None:
    with pytest.raises(LocalCredentialsError):
        open_exported_ca(content, "correct horse battery")


def test_renewal_is_due_at_a_third_and_loud_at_the_end() -> None:
    end = NOW + timedelta(days=825)
    ca_end = NOW + timedelta(days=3652)
    assert not renewal_is_due(end, NOW, ca_ends_at=ca_end)
    assert not renewal_is_due(end, NOW + timedelta(days=549), ca_ends_at=ca_end)
    assert renewal_is_due(end, NOW + timedelta(days=550), ca_ends_at=ca_end)
    assert not renewal_is_due(end, NOW + timedelta(days=550), ca_ends_at=end + GRACE)
    assert ca_warning_of(ca_end, NOW) is None
    assert "new cluster" in str(ca_warning_of(ca_end, NOW + timedelta(days=2900)))
    assert warning_of(end, NOW + timedelta(days=700)) is None
    assert "ends in 25 days" in str(warning_of(end, NOW + timedelta(days=800)))
    assert "tolerated for 4 more days" in str(warning_of(end, NOW + timedelta(days=828)))
    assert "join again" in str(warning_of(end, NOW + timedelta(days=833)))
