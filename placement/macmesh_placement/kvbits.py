"""What a quantised KV cache costs: mlx-lm's ``QuantizedKVCache``, computed from the profile of the plain one.

A row of ``D`` elements becomes ``D // (32 // bits)`` packed words of 4 bytes, and for every group of
``group_size`` elements a scale and a bias of the key's dtype. Steps and preallocation stay as they are.

Attention over such a cache leaves the fused kernel: mlx-lm multiplies with quantised keys and materialises
the scores.
"""

from dataclasses import replace

from macmesh_placement.cachecost import CachePiece
from macmesh_placement.errors import LocalProfileError

#: What ``mx.quantize`` knows.
KV_BITS = (2, 3, 4, 5, 6, 8)

OFFERED_KV_BITS = (4, 8)
"""Those that plans are made with: of the rest, some fit no word and 2 bits are of no use."""
KV_GROUP_SIZES = (32, 64, 128)

_WORD_BITS = 32
_WORD_BYTES = 4
_SCALE_AND_BIAS = 2


def require_kv_bits(bits: int, group_size: int) -> None:
    """Raises `LocalProfileError` where mlx cannot quantise to so many bits in such groups."""
    if bits not in KV_BITS:
        raise LocalProfileError(f"kv_bits must be one of {KV_BITS}, not {bits!r}")
    if group_size not in KV_GROUP_SIZES:
        raise LocalProfileError(f"kv group_size must be one of {KV_GROUP_SIZES}, not {group_size!r}")


def quantised(piece: CachePiece, bits: int, group_size: int, where: str) -> CachePiece:
    """The piece with a quantised cache in its place; states stay as they are, as in mlx-lm.

    Args:
        piece: One cache.
        bits: Bits of one element.
        group_size: Elements that share a scale and a bias.
        where: How messages name the piece's place, such as ``"layer 3"``.

    Raises:
        LocalProfileError: mlx-lm cannot quantise a cache of this kind or shape.
    """
    if piece.kind in {"constant", "recent"}:
        return piece
    if piece.kind != "growing":
        raise LocalProfileError(
            f"{where} has a cache of the kind {piece.kind} ({piece.source}), which mlx-lm cannot quantise: "
            "plan without kv_bits"
        )
    if not piece.heads:
        raise LocalProfileError(
            f"{where} does not say its heads and their sizes: profile the model anew to plan with kv_bits"
        )
    row = piece.heads * sum(
        _row_bytes(width, bits, group_size, piece.item_bytes, where)
        for width in (piece.key_dim, piece.value_dim)
    )
    return replace(piece, source="QuantizedKVCache", bytes_per_token=row, array_count=6)


def _row_bytes(width: int, bits: int, group_size: int, item_bytes: int, where: str) -> int:
    if width % group_size:
        raise LocalProfileError(
            f"{where} caches rows of {width} elements, which groups of {group_size} do not divide: "
            "plan without kv_bits"
        )
    words = width // (_WORD_BITS // bits)
    if words * _WORD_BITS != width * bits:
        # The cache allocates whole elements per word, mlx packs them across words: 3, 5 and 6 bits disagree
        # at some widths, and the cache then takes no row.
        raise LocalProfileError(
            f"{where} caches rows of {width} elements, for which mlx-lm's cache of {bits} bits allocates "
            "another size than mlx packs: choose 2, 4 or 8 bits"
        )
    return words * _WORD_BYTES + _SCALE_AND_BIAS * item_bytes * (width // group_size)
