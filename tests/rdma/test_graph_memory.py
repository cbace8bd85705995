"""The arithmetic of the memory between two ranks, and of what the kernels are told of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_rdma.errors import LocalLaneStateError
from macmesh_rdma.graph_kernels import kernel_name, numbers_of, receive_source, send_source
from macmesh_rdma.graph_memory import (
    BUFFERS,
    MOST_BUFFERS,
    SIGNATURES,
    WORD_BYTES,
    GraphMemory,
    layout_of,
    signature_of,
)

memories = st.builds(GraphMemory, st.integers(1, 1 << 20), st.integers(1, 40))


@given(memories, st.integers(1, 10_000))
def test_no_two_payloads_that_may_be_on_their_way_share_a_byte(memory: GraphMemory, number: int) -> None:
    on_their_way = range(number, number + memory.buffers)
    places = sorted(memory.buffer(one) for one in on_their_way)
    ends = [place + memory.payload_bytes for place in places]
    assert places[0] == BUFFERS
    assert all(end <= place for end, place in zip(ends, places[1:], strict=False))
    assert ends[-1] <= memory.size_bytes
    assert all(place % 256 == 0 for place in places)
    words = {memory.signature(one) for one in on_their_way}
    assert len(words) == memory.buffers
    assert SIGNATURES <= min(words) <= max(words) + WORD_BYTES <= BUFFERS


@given(memories, st.integers(1, 10_000))
def test_a_buffer_is_written_again_only_after_it_was_read(memory: GraphMemory, number: int) -> None:
    before = memory.credit(number)
    assert before < number
    if before >= 1:
        assert memory.buffer(before) == memory.buffer(number)
    assert all(memory.buffer(one) != memory.buffer(number) for one in range(max(1, before + 1), number))


@given(st.lists(st.integers(0, 10_000), max_size=8))
def test_arrays_of_a_payload_lie_apart_and_aligned(sizes: list[int]) -> None:
    layout = layout_of(sizes)
    ends = [offset + size for offset, size in zip(layout.offsets, sizes, strict=True)]
    assert all(offset % 16 == 0 for offset in layout.offsets)
    assert all(end <= offset for end, offset in zip(ends, layout.offsets[1:], strict=False))
    assert layout.size_bytes >= max(ends, default=0)
    told = numbers_of(7, 8, 9, sizes)
    assert told[:3] == [7, 8, 9]
    assert told[3::2] == list(layout.offsets)
    assert told[4::2] == sizes


def test_what_is_too_large_or_cannot_be_is_refused() -> None:
    memory = GraphMemory(100, 2)
    memory.require(layout_of([48, 40]))
    with pytest.raises(LocalLaneStateError, match="112 bytes is larger than a buffer of 100"):
        memory.require(layout_of([48, 49]))
    with pytest.raises(LocalLaneStateError, match="counted from 1"):
        memory.buffer(0)
    for payload_bytes, buffers in ((0, 1), (1, 0), (1, MOST_BUFFERS + 1)):
        with pytest.raises(LocalLaneStateError, match="cannot be"):
            GraphMemory(payload_bytes, buffers)


def test_signatures_and_names_tell_payloads_apart() -> None:
    facts = (((3, 4), "float32"),)
    others: list[tuple[tuple[tuple[int, ...], str], ...]] = [
        (((4, 3), "float32"),),
        (((3, 4), "int32"),),
        (*facts, ((0,), "int8")),
    ]
    assert 0 <= signature_of(facts) < 1 << 63
    assert signature_of(facts) not in {signature_of(other) for other in others}
    sources = [receive_source(1, 2), receive_source(2, 2), send_source(1, 2, 4), send_source(1, 2, 5)]
    assert len({kernel_name("k", source, ("int8",)) for source in sources}) == 4
    assert kernel_name("k", sources[0], ("int8",)) != kernel_name("k", sources[0], ("int32",))
    for source in sources:
        assert not any(word in source for word in ("AWAITED", "WANTED", "TOLD", "PEER_END", "CHECK"))
