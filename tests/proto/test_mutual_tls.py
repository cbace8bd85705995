"""Remote clients: mutual TLS over TCP, with certificates made for the test."""

import datetime as dt
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

import macmesh
from macmesh.credentials import Credentials
from macmesh.errors import LocalCredentialsError, RemoteUnavailableError
from macmesh.reasons import Reason
from macmesh.testing import GenerateScript, ThreadedFakeDaemon
from macmesh.v1 import inference_pb2


class Authority:
    """A throw-away certificate authority."""

    def __init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("ca", self.key, [], authority=True)

    def _sign(
        self, name: str, key: ec.EllipticCurvePrivateKey, names: list[str], *, authority: bool = False
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "ca")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        if names:
            san = x509.SubjectAlternativeName([x509.DNSName(n) for n in names])
            builder = builder.add_extension(san, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    def issue(self, name: str, names: tuple[str, ...] = ()) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, key, list(names))
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        return certificate.public_bytes(serialization.Encoding.PEM), pem

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def client(self) -> Credentials:
        return Credentials(self.pem, *self.issue("laptop"))


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def daemon(authority: Authority) -> Iterator[ThreadedFakeDaemon]:
    certificate, key = authority.issue("n1", ("n1.node.macmesh", "node.macmesh"))
    server = grpc.ssl_server_credentials([(key, certificate)], authority.pem, require_client_auth=True)
    with ThreadedFakeDaemon("127.0.0.1:0", credentials=server) as daemon:
        yield daemon


def test_a_client_of_the_cluster_gets_in(
    daemon: ThreadedFakeDaemon, authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(authority.client().to_json())
    path.chmod(0o644)
    with pytest.raises(LocalCredentialsError, match="chmod 600"):
        macmesh.Client(daemon.target, credentials=path)
    path.chmod(0o600)
    with macmesh.Client(daemon.target, credentials=path) as client:
        assert client.complete("x").text == "Once upon a time."


async def test_async_too_and_by_node_name(daemon: ThreadedFakeDaemon, authority: Authority) -> None:
    credentials = replace(authority.client(), server_name="n1.node.macmesh", addresses=(daemon.target,))
    async with macmesh.AsyncClient(credentials=credentials) as client:
        assert (await client.status()).serving_state == "ready"


@pytest.mark.parametrize("case", ["foreign client", "foreign server", "wrong node"])
def test_others_stay_out(daemon: ThreadedFakeDaemon, authority: Authority, case: str) -> None:
    mine, other = authority.client(), Authority().client()
    credentials = {
        "foreign client": replace(other, ca_pem=mine.ca_pem),
        "foreign server": replace(mine, ca_pem=other.ca_pem),
        "wrong node": replace(mine, server_name="n2.node.macmesh"),
    }[case]
    with (
        macmesh.Client(daemon.target, credentials=credentials) as client,
        pytest.raises(RemoteUnavailableError) as caught,
    ):
        client.status()
    assert caught.value.reason == Reason.CONNECTION_FAILED
    assert daemon.calls == []


def test_a_proxy_of_the_environment_is_not_used(
    daemon: ThreadedFakeDaemon, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with macmesh.Client(daemon.target, credentials=authority.client()) as client:
        assert client.status().has_quorum


def test_nobody_there(authority: Authority) -> None:
    with (
        macmesh.Client("127.0.0.1:1", credentials=authority.client()) as client,
        pytest.raises(RemoteUnavailableError) as caught,
    ):
        client.status()
    assert caught.value.is_transient


def test_a_generation_goes_on_at_another_node_that_the_cluster_named(authority: Authority) -> None:
    certificate, key = authority.issue("n2", ("n2.node.macmesh", "node.macmesh"))
    server = grpc.ssl_server_credentials([(key, certificate)], authority.pem, require_client_auth=True)
    with (
        ThreadedFakeDaemon("127.0.0.1:0", credentials=server) as first,
        ThreadedFakeDaemon("127.0.0.1:0", credentials=server) as second,
        macmesh.Client(first.target, credentials=authority.client()) as client,
    ):
        first.script.generate = GenerateScript(hold_after=2)
        first.script.status.nodes[0].member.addresses[:] = [second.target]
        client.status()
        generation = client.generate("x")
        texts = [next(generation).text, next(generation).text]
        first.stop()
        texts += [chunk.text for chunk in generation]
        assert "".join(texts) == "Once upon a time."
        [taken_up] = [r for _, r in second.calls if isinstance(r, inference_pb2.GenerateRequest)]
        assert list(taken_up.resume.token_ids) == [100, 101]
        # Its own node is away for good: another one begins what comes next.
        assert client.complete("x").text == "Once upon a time."
