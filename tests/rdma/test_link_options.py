import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.endpoint import Endpoint
from macmesh_rdma.errors import LocalAddressError, LocalOptionError
from macmesh_rdma.options import LinkOptions


def test_the_defaults_are_those_of_the_latency_preset_and_throughput_has_more_buffers() -> None:
    assert LinkOptions() == LinkOptions.preset("latency")
    assert LinkOptions.preset("throughput").num_buffers == 64
    assert LinkOptions().buffer_bytes == 8 * 65536 * 63
    with pytest.raises(LocalOptionError, match="'speed' is no preset"):
        LinkOptions.preset("speed")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_buffers", 0),
        ("num_buffers", 5000),
        ("num_buffers", True),
        ("frame_bytes", 3000),
        ("frame_bytes", 512),
        ("buffer_sizes", 0),
        ("max_outstanding", 0),
        ("spin_us", -1.0),
        ("spin_us", float("nan")),
        ("sockets_per_link", 17),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(LocalOptionError, match=field):
        LinkOptions(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_the_environment_goes_over_the_preset_and_our_own_name_over_that_of_mlx() -> None:
    assert LinkOptions.from_environment({}) == LinkOptions()
    assert LinkOptions.from_environment({"MLX_JACCL_NUM_BUFFERS": "16"}).num_buffers == 16
    both = {"MLX_JACCL_NUM_BUFFERS": "16", "MACMESH_LINK_NUM_BUFFERS": "32", "MACMESH_LINK_SPIN_US": "2.5"}
    assert LinkOptions.from_environment(both) == LinkOptions(num_buffers=32, spin_us=2.5)
    throughput = {"MACMESH_LINK_PRESET": "throughput", "MACMESH_LINK_FRAME_BYTES": "131072"}
    assert LinkOptions.from_environment(throughput) == LinkOptions(num_buffers=64, frame_bytes=131072)
    with pytest.raises(LocalOptionError, match="MLX_JACCL_NUM_BUFFERS is 'many'"):
        LinkOptions.from_environment({"MLX_JACCL_NUM_BUFFERS": "many"})
    with pytest.raises(LocalOptionError, match="MACMESH_LINK_NUM_BUFFERS: num_buffers is 0"):
        LinkOptions.from_environment({"MACMESH_LINK_NUM_BUFFERS": "0"})


def test_the_digest_tells_what_both_ends_must_share() -> None:
    options = LinkOptions()
    assert options.digest("auto") == LinkOptions(spin_us=3).digest("auto")
    assert options.digest("auto") != options.digest("shm")
    assert options.digest("auto") != LinkOptions(num_buffers=9).digest("auto")


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
