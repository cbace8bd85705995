import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from hypothesis import given
from hypothesis import strategies as st

from macmesh_daemon.identity import (
    LocalClusterExistsError,
    LocalCredentialsError,
    LocalNoClusterError,
    RemoteUntrustedError,
    begin_start,
    create_cluster_ca,
    init_cluster,
    install_membership,
    is_node_id,
    issue_node_certificate,
    load_cluster_credentials,
    load_credentials,
    load_or_create_identity,
    node_id_of,
    node_id_of_certificate,
    provision_node,
)
from macmesh_daemon.identity.hardware import hardware_id, host_id, parse_ioreg_uuid
from macmesh_daemon.identity.keys import new_private_key, private_key_from_pem

IOREG = """+-o J316sAP  <class IOPlatformExpertDevice, id 0x100000227, registered>
    {
      "IOPlatformSerialNumber" = "X1Y2Z3"
      "IOPlatformUUID" = "A1B2C3D4-0000-1111-2222-333344445555"
      "model" = <"MacBookPro18,2">
    }
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_node_id_is_a_short_hash_of_the_public_key() -> None:
    key = new_private_key()
    node_id = node_id_of(key.public_key())
    assert is_node_id(node_id)
    assert len(node_id) == 26
    assert node_id == node_id_of(key.public_key())
    assert node_id != node_id_of(new_private_key().public_key())


def test_the_node_id_of_a_known_key_never_changes() -> None:
    # Nodes in the field are known by this id: a change of the formula would make strangers of them all.
    pem = (
        b"-----BEGIN PUBLIC KEY-----\n"
        b"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEZd4V/st+w837Vw+oercc4fGOidWX\n"
        b"awcFfNu/9f+Ft2Bn2FCYtpA7rYK+sMmI958fKV6cEoXFgLGZg2Eg7Ru/fg==\n"
        b"-----END PUBLIC KEY-----\n"
    )
    key = serialization.load_pem_public_key(pem)
    assert node_id_of(key) == "6pmaqez7yyapq2csvpfnbiuim4"  # type: ignore[arg-type]


@given(st.text(max_size=40))
def test_nothing_else_looks_like_a_node_id(text: str) -> None:
    assert is_node_id(text) == (
        len(text) == 26 and all(c in "abcdefghijklmnopqrstuvwxyz234567" for c in text)
    )


def test_an_identity_is_made_once_and_kept_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    first = load_or_create_identity(folder)
    assert load_or_create_identity(folder) == first
    assert mode(folder) == 0o700
    assert mode(folder / "node.key") == 0o600
    assert "PRIVATE" not in repr(first)


def test_a_folder_copied_to_another_machine_becomes_another_node(tmp_path: Path) -> None:
    first = load_or_create_identity(tmp_path, machine="mac-a")
    begin_start(tmp_path)
    (tmp_path / "votes.json").write_text("{}")
    (tmp_path / "macmeshd.lock").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "state").mkdir()
    second = load_or_create_identity(tmp_path, machine="mac-b")
    assert second.node_id != first.node_id
    assert second.replaced_node_id == first.node_id
    assert begin_start(tmp_path).incarnation == 1
    aside = tmp_path / f"replaced-identity-{first.node_id}"
    assert {path.name for path in aside.iterdir()} == {"node.key", "votes.json", "state"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "node.key",
        "identity.json",
        "identity.lock",
        "macmeshd.lock",
        "models",
        aside.name,
    }
    third = load_or_create_identity(tmp_path, machine="mac-b")
    assert (third.node_id, third.replaced_node_id) == (second.node_id, None)


def test_a_copied_member_must_join_anew(tmp_path: Path) -> None:
    init_cluster(tmp_path)
    with pytest.raises(LocalNoClusterError, match="another machine"):
        load_credentials(tmp_path, machine="another machine's hash")
    assert not (tmp_path / "ca.key").exists()


def test_a_machine_without_an_id_keeps_its_key(tmp_path: Path) -> None:
    first = load_or_create_identity(tmp_path, machine="")
    bound = load_or_create_identity(tmp_path, machine="mac-a")
    assert bound.node_id == first.node_id
    assert load_or_create_identity(tmp_path, machine="").node_id == first.node_id
    assert load_or_create_identity(tmp_path, machine="mac-b").replaced_node_id == first.node_id


def test_each_start_has_a_higher_incarnation_and_another_nonce(tmp_path: Path) -> None:
    with pytest.raises(LocalCredentialsError, match="no identity"):
        begin_start(tmp_path)
    load_or_create_identity(tmp_path)
    starts = [begin_start(tmp_path) for _ in range(3)]
    assert [start.incarnation for start in starts] == [1, 2, 3]
    assert len({start.boot_nonce for start in starts}) == 3
    assert all(0 <= start.boot_nonce < 1 << 64 for start in starts)


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2}', '{"version": 1, "incarnation": "x"}'])
def test_a_broken_record_is_said_and_not_overwritten(tmp_path: Path, content: str) -> None:
    load_or_create_identity(tmp_path)
    path = tmp_path / "identity.json"
    path.write_text(content)
    with pytest.raises(LocalCredentialsError, match=r"identity\.json"):
        begin_start(tmp_path)
    assert path.read_text() == content


def test_a_broken_key_is_said(tmp_path: Path) -> None:
    (tmp_path / "node.key").write_bytes(b"not a key")
    with pytest.raises(LocalCredentialsError, match=r"node\.key"):
        load_or_create_identity(tmp_path)


def test_the_founder_makes_a_cluster_and_is_its_first_node(tmp_path: Path) -> None:
    ca = init_cluster(tmp_path)
    credentials = load_credentials(tmp_path)
    assert credentials.founder
    assert credentials.cluster_hash == ca.cluster_hash
    assert len(ca.cluster_hash) == 64
    assert credentials.cluster_prefix == ca.cluster_hash[:8]
    assert mode(tmp_path / "ca.key") == mode(tmp_path / "node.key") == 0o600
    assert load_cluster_credentials(tmp_path) == ca
    assert 824 < credentials.remaining_days() <= 825
    assert "PRIVATE" not in repr(credentials) + repr(ca)


def test_a_second_cluster_on_one_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    init_cluster(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(LocalClusterExistsError, match="already belongs to cluster"):
        init_cluster(tmp_path)
    with pytest.raises(LocalClusterExistsError):
        provision_node(tmp_path, create_cluster_ca())
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_crash_while_founding_can_be_repeated(tmp_path: Path) -> None:
    init_cluster(tmp_path)
    (tmp_path / "cluster.json").unlink()
    with pytest.raises(LocalNoClusterError, match="cluster init"):
        load_credentials(tmp_path)
    init_cluster(tmp_path)
    assert load_credentials(tmp_path).founder


def test_a_provisioned_node_belongs_to_the_cluster_and_cannot_admit_others(tmp_path: Path) -> None:
    ca = init_cluster(tmp_path / "founder")
    node_id = provision_node(tmp_path / "second", ca)
    credentials = load_credentials(tmp_path / "second")
    assert (credentials.node_id, credentials.founder) == (node_id, False)
    assert credentials.cluster_hash == ca.cluster_hash
    assert not (tmp_path / "second" / "ca.key").exists()
    with pytest.raises(LocalNoClusterError, match="does not hold the cluster's CA key"):
        load_cluster_credentials(tmp_path / "second")


def test_certificates_say_what_they_must() -> None:
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    ca = create_cluster_ca(now=now)
    key = new_private_key()
    node_id = node_id_of(key.public_key())
    certificate = x509.load_pem_x509_certificate(issue_node_certificate(ca, key.public_key(), now=now))
    assert certificate.not_valid_before_utc == now - timedelta(days=2)
    assert certificate.not_valid_after_utc == now + timedelta(days=825 + 7)
    assert certificate.subject.rfc4514_string() == f"CN={node_id}"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [f"{node_id}.node.macmesh", "node.macmesh"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {item.dotted_string for item in usage} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    root = x509.load_pem_x509_certificate(ca.ca_pem)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    assert (root.not_valid_after_utc - now).days == 3652
    assert node_id_of_certificate(certificate) == node_id


def test_the_ca_itself_is_no_node() -> None:
    with pytest.raises(RemoteUntrustedError):
        node_id_of_certificate(x509.load_pem_x509_certificate(create_cluster_ca().ca_pem))


def test_a_ca_with_a_foreign_key_issues_nothing() -> None:
    ours, theirs = create_cluster_ca(), create_cluster_ca()
    mixed = type(ours)(ours.ca_pem, theirs.ca_key_pem, ours.cluster_hash)
    with pytest.raises(LocalCredentialsError, match="does not belong"):
        issue_node_certificate(mixed, new_private_key().public_key())


def test_files_that_do_not_belong_together_are_told_apart(tmp_path: Path) -> None:
    init_cluster(tmp_path / "a")
    init_cluster(tmp_path / "b")
    (tmp_path / "a" / "ca.crt").write_bytes((tmp_path / "b" / "ca.crt").read_bytes())
    with pytest.raises(LocalCredentialsError, match="not the CA"):
        load_credentials(tmp_path / "a")
    record = json.loads((tmp_path / "b" / "cluster.json").read_text())
    (tmp_path / "a" / "cluster.json").write_text(json.dumps(record))
    with pytest.raises(LocalCredentialsError, match="not issued by this cluster's CA"):
        load_credentials(tmp_path / "a")
    (tmp_path / "a" / "node.crt").write_bytes((tmp_path / "b" / "node.crt").read_bytes())
    with pytest.raises(LocalCredentialsError, match="but the key to"):
        load_credentials(tmp_path / "a")
    (tmp_path / "a" / "node.crt").unlink()
    with pytest.raises(LocalCredentialsError, match="missing"):
        load_credentials(tmp_path / "a")


def test_an_expired_certificate_is_said_with_both_dates(tmp_path: Path) -> None:
    init_cluster(tmp_path)
    with pytest.raises(LocalCredentialsError, match="expired on"):
        load_credentials(tmp_path, now=datetime.now(UTC) + timedelta(days=833))
    in_grace = load_credentials(tmp_path, now=datetime.now(UTC) + timedelta(days=831))
    assert in_grace.remaining_days(datetime.now(UTC) + timedelta(days=831)) < -5
    with pytest.raises(LocalCredentialsError, match="not valid yet"):
        load_credentials(tmp_path, now=datetime.now(UTC) - timedelta(days=3))
    assert load_credentials(tmp_path, now=datetime.now(UTC) - timedelta(days=1)).founder


def test_a_certificate_of_another_node_is_not_installed(tmp_path: Path) -> None:
    ca = create_cluster_ca()
    load_or_create_identity(tmp_path)
    foreign = issue_node_certificate(ca, new_private_key().public_key())
    with pytest.raises(LocalCredentialsError, match="but the key to"):
        install_membership(tmp_path, foreign, ca.ca_pem, founder=False)
    assert not (tmp_path / "cluster.json").exists()


def test_the_hardware_uuid_is_read_from_ioreg() -> None:
    assert parse_ioreg_uuid(IOREG) == "A1B2C3D4-0000-1111-2222-333344445555"
    assert parse_ioreg_uuid("") is None


def test_the_host_id_is_stable_and_hides_the_uuid() -> None:
    assert host_id() == host_id()
    assert len(host_id()) == 32
    assert hardware_id() in {"", host_id()}


def test_other_kinds_of_key_are_refused() -> None:
    with pytest.raises(LocalCredentialsError, match="here"):
        private_key_from_pem(b"", where="here")
