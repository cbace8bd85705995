"""What measuring a link may cost."""

import mlx.core  # noqa: F401  before the native module
import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma import measure
from macmesh_rdma.measure import FLOODS, FRAMES_PER_FLOOD, MOST_FLOOD_BYTES, flood_bytes, measure_link
from macmesh_rdma.options import LinkOptions


@given(
    num_buffers=st.integers(1, 64),
    frame_log2=st.integers(12, 20),
    buffer_sizes=st.integers(1, 8),
)
def test_no_options_make_measuring_many_frames(num_buffers: int, frame_log2: int, buffer_sizes: int) -> None:
    options = LinkOptions(num_buffers=num_buffers, frame_bytes=1 << frame_log2, buffer_sizes=buffer_sizes)
    largest_buffer_bytes = options.frame_bytes << (options.buffer_sizes - 1)
    assert 0 < flood_bytes(options) <= MOST_FLOOD_BYTES
    assert flood_bytes(options) / largest_buffer_bytes <= FRAMES_PER_FLOOD


def test_the_usual_options_are_measured_with_large_messages() -> None:
    assert flood_bytes(LinkOptions()) == MOST_FLOOD_BYTES


class RecordedLinks:
    """Stands in for the native calls; notes what each side moves."""

    def __init__(self) -> None:
        self.floods: list[tuple[str, int, int]] = []

    def link_ping(self, _link: object, _size: int, count: int, _seconds: float) -> list[float]:
        return [1e-6] * count

    def link_echo(self, _link: object, _size: int, _count: int, _seconds: float) -> None:
        pass

    def link_flood(self, _link: object, size_bytes: int, count: int, _seconds: float) -> float:
        self.floods.append(("flood", size_bytes, count))
        return 1.0

    def link_drain(self, _link: object, size_bytes: int, count: int, _seconds: float) -> None:
        self.floods.append(("drain", size_bytes, count))


def test_both_sides_move_the_same_few_frames_and_count_them(monkeypatch: pytest.MonkeyPatch) -> None:
    native = RecordedLinks()
    monkeypatch.setattr(measure, "_group", native)
    small = LinkOptions(num_buffers=2, frame_bytes=4096, buffer_sizes=2)
    size_bytes = FRAMES_PER_FLOOD * 8192
    for rank in (0, 1):
        speed = measure_link(None, rank, 1 - rank, small, 1.0)  # type: ignore[arg-type]  # the recorder takes any
        assert speed.gb_per_s == pytest.approx(size_bytes * FLOODS / 1e9)
    assert native.floods == [
        ("flood", size_bytes, FLOODS),
        ("drain", size_bytes, FLOODS),
        ("drain", size_bytes, FLOODS),
        ("flood", size_bytes, FLOODS),
    ]
