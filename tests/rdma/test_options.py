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
