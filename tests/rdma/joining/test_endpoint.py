import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.errors import LocalAddressError
from macmesh_rdma.joining.endpoint import Endpoint

ADDRESSES = st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(lambda address: f"[{address}]"))
ENDPOINTS = st.builds(
    Endpoint,
    host_id=st.text(st.characters(codec="ascii", categories=["L", "N"]), max_size=64),
    unix_path=st.sampled_from(["", "/tmp/a/lane", "/tmp/ü"]),  # noqa: S108  only text
    tcp_address=st.builds(lambda host, port: f"{host}:{port}", ADDRESSES, st.integers(1, 65535)),
)


@given(ENDPOINTS)
def test_an_endpoint_survives_its_encoding(endpoint: Endpoint) -> None:
    assert Endpoint.decode(endpoint.encode()) == endpoint


@given(st.text(max_size=200))
def test_any_other_text_is_refused(text: str) -> None:
    with pytest.raises(LocalAddressError):
        Endpoint.decode(text)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"host":"a","unix":"","tcp":"localhost:1"}', "tcp_address"),
        ('{"host":"a","unix":"","tcp":"::1:1"}', "tcp_address"),
        ('{"host":"a","unix":"","tcp":"[127.0.0.1]:1"}', "tcp_address"),
        ('{"host":"a","unix":"","tcp":"127.0.0.1:0"}', "tcp_address"),
        ('{"host":"a","unix":"lane","tcp":"127.0.0.1:1"}', "unix_path"),
        ('{"host":"a","unix":"/' + 110 * "x" + '","tcp":"127.0.0.1:1"}', "unix_path"),
        ('{"host":"a\\n","unix":"","tcp":"127.0.0.1:1"}', "host_id"),
        ('{"host":1,"unix":"","tcp":"127.0.0.1:1"}', "host_id"),
        ('{"unix":"","tcp":"127.0.0.1:1"}', "host_id"),
        ('{"host":"a","unix":"","tcp":"127.0.0.1:1","more":1}', "more"),
        ("[" * 900, "no endpoint"),
        ('"' + "x" * 2000 + '"', "too long"),
    ],
)
def test_what_is_wrong_with_an_endpoint_is_named(text: str, field: str) -> None:
    with pytest.raises(LocalAddressError, match=field):
        Endpoint.decode(text)
