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


def test_constant_state_counts_its_views_during_prefill_only() -> None:
    state = CachePiece(kind="constant", source="ArraysCache", constant_bytes=77, view_bytes_per_token=5)
    assert state.reserved_bytes(10_000) == 77
    assert state.prefill_bytes(10_000, 64) == 5 * 64
    assert state.bytes_after([64, 1]) == 77


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
