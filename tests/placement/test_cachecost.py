from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from macmesh_placement import CachePiece, LocalProfileError
from macmesh_placement.cachecost import CacheKind

KINDS: st.SearchStrategy[CacheKind] = st.sampled_from(["growing", "ring", "chunked"])


def _piece(kind: CacheKind, window: int, step: int = 256) -> CachePiece:
    return CachePiece(
        kind=kind,
        source=kind,
        bytes_per_token=10,
        window_tokens=None if kind == "growing" else window,
        step_tokens=step,
    )


@pytest.mark.parametrize(
    ("context", "rows"), [(0, 0), (1, 256), (255, 256), (256, 256), (257, 512), (196_608, 196_608)]
)
def test_growing_cache_is_reserved_in_allocation_steps(context: int, rows: int) -> None:
    assert _piece("growing", 0).reserved_bytes(context) == 10 * rows


def test_preallocated_cache_keeps_its_size_until_it_is_full() -> None:
    piece = _piece("growing", 0)
    assert piece.bytes_after([100, 400, 1], reserve_tokens=501) == piece.reserved_bytes(501)
    assert piece.bytes_after([512, 1], reserve_tokens=501) == 10 * 768


def test_ring_follows_the_documented_sizes_of_a_long_prefill() -> None:
    ring = _piece("ring", 1024)
    assert ring.bytes_after([3000]) == 10 * 3000
    assert ring.bytes_after([512, 512, 512]) == 10 * (1023 + 512)
    assert ring.bytes_after([3000, 1]) == 10 * 1024
    assert ring.reserved_bytes(3000) == 10 * 1024


@given(
    kind=KINDS,
    window=st.integers(1, 600),
    step=st.sampled_from([1, 16, 256]),
    chunks=st.lists(st.integers(1, 90), min_size=1, max_size=8),
    decoded=st.integers(0, 40),
    spare=st.integers(0, 50),
)
def test_no_history_within_the_context_exceeds_what_is_reserved(
    kind: CacheKind, window: int, step: int, chunks: list[int], decoded: int, spare: int
) -> None:
    piece = _piece(kind, window, step)
    context = sum(chunks) + decoded + spare
    reserve = context if kind == "growing" else 0
    history = [*chunks, *[1] * decoded]
    held = piece.bytes_after(history, reserve_tokens=reserve)
    peak = piece.reserved_bytes(context) + piece.prefill_bytes(context, max(chunks))
    assert held <= peak
    if decoded:
        assert held <= piece.reserved_bytes(context)


@given(kind=KINDS, window=st.integers(1, 600), context=st.integers(0, 2000), chunk=st.integers(1, 300))
def test_a_larger_context_never_needs_less(kind: CacheKind, window: int, context: int, chunk: int) -> None:
    piece = _piece(kind, window)

    def need(tokens: int) -> int:
        return piece.reserved_bytes(tokens) + piece.prefill_bytes(tokens, chunk)

    assert need(context) <= need(context + 1)
    assert piece.read_bytes(context) <= piece.reserved_bytes(context)


def test_constant_state_counts_its_views_during_prefill_and_of_one_token_after_it() -> None:
    state = CachePiece(
        kind="constant",
        source="ArraysCache",
        constant_bytes=77,
        view_bytes_per_token=5,
        small_view_bytes_per_token=3,
        small_view_limit_bytes=100,
        decode_view_bytes=4,
    )
    assert state.reserved_bytes(10_000) == 77 + 4
    assert state.prefill_bytes(10_000, 16) == (5 + 3) * 16 - 4
    assert state.prefill_bytes(10_000, 64) == 5 * 64 + 100 - 4
    assert state.bytes_after([64, 1]) == 77
    assert state.bytes_after([64, 1], batch=3) == 3 * 77


def test_ring_counts_views_of_a_step_that_finds_it_empty() -> None:
    ring = CachePiece(kind="ring", source="r", bytes_per_token=10, window_tokens=100, view_bytes_per_token=60)
    assert ring.reserved_bytes(1000) == 10 * 100
    assert ring.prefill_bytes(1000, 64) == max(10 * (99 + 64), (10 + 60) * 64) - 10 * 100
    assert ring.prefill_bytes(1000, 4) == 10 * 3


def test_compressed_window_keeps_groups_and_the_open_one() -> None:
    piece = CachePiece(
        kind="compressed",
        source="LayerCache",
        bytes_per_token=10,
        window_tokens=8,
        group_tokens=4,
        group_bytes=7,
        pending_bytes_per_token=3,
    )
    assert [piece.bytes_after([n]) for n in (1, 3, 4, 7, 8, 9)] == [13, 39, 47, 86, 94, 97]
    assert piece.bytes_after([4, 1, 4]) == 97
    assert piece.bytes_after([9], batch=3) == 3 * 97
    assert piece.reserved_bytes(9) == 8 * 10 + 2 * 7 + 3 * 3
    assert piece.read_bytes(9) == piece.reserved_bytes(9)


@given(
    histories=st.lists(st.integers(1, 300), min_size=1, max_size=8),
    kind=KINDS,
    window=st.integers(1, 600),
    batch=st.integers(1, 5),
)
def test_a_batch_has_so_many_times_the_bytes(
    histories: list[int], kind: CacheKind, window: int, batch: int
) -> None:
    piece = _piece(kind, window)
    assert piece.bytes_after(histories, batch=batch) == batch * piece.bytes_after(histories)


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "spiral"},
        {"kind": "ring"},
        {"kind": "growing", "window_tokens": 5},
        {"kind": "growing", "bytes_per_token": -1},
        {"kind": "growing", "step_tokens": 0},
        {"kind": "growing", "bytes_per_token": 1.5},
        {"kind": "growing", "constant_bytes": True},
    ],
)
def test_impossible_pieces_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(LocalProfileError):
        CachePiece(**{"source": "x", **fields})
