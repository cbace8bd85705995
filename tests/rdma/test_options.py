import pytest

from macmesh_rdma.errors import LocalOptionError
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
        ("checksum_payloads", 1),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(LocalOptionError, match=field):
        LinkOptions(**{field: value})  # type: ignore[arg-type]  # wrong on purpose


def test_the_digest_tells_what_both_ends_must_share() -> None:
    options = LinkOptions()
    assert options.digest("auto") == LinkOptions(spin_us=3).digest("auto")
    assert options.digest("auto") != options.digest("shm")
    for other in (LinkOptions(num_buffers=9), LinkOptions(checksum_payloads=True)):
        assert options.digest("auto") != other.digest("auto")
