"""What one layer of a model costs, and a model's layers as JSON."""

from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

from macmesh_placement.attention import AttentionFacts
from macmesh_placement.cachecost import CachePiece
from macmesh_placement.checks import Reader, require_integer
from macmesh_placement.errors import LocalProfileError
from macmesh_placement.kvbits import quantised
from macmesh_placement.scratch import Scratch

_MAX_LAYERS = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerProfile:
    """What one layer costs.

    Attributes:
        weight_bytes: Bytes of its parameters once loaded.
        active_weight_bytes: Bytes of them that decoding one token reads: of a mixture of experts, the chosen
            experts.
        active_parameters: Parameters that one token is multiplied with; two floating-point operations each.
        parameter_count: Arrays that hold its parameters; each may lose up to a page to the allocator.
        scratch: What a prefill step keeps alive while it runs through the layer.
        caches: The pieces of its cache; empty for a layer without one.
        attention: None for a layer without attention.
    """

    weight_bytes: int
    active_weight_bytes: int
    active_parameters: int = 0
    parameter_count: int = 1
    scratch: Scratch = field(default=Scratch())
    caches: tuple[CachePiece, ...] = ()
    attention: AttentionFacts | None = None

    def __post_init__(self) -> None:
        for name in (
            "weight_bytes",
            "active_weight_bytes",
            "active_parameters",
            "parameter_count",
        ):
            require_integer(getattr(self, name), f"layer {name}", LocalProfileError)
        if self.active_weight_bytes > self.weight_bytes:
            raise LocalProfileError(
                f"layer active_weight_bytes {self.active_weight_bytes} exceeds its {self.weight_bytes} bytes"
            )

    def prefill_scratch_bytes(self, context_tokens: int, chunk_tokens: int) -> int:
        """Bytes that a prefill step keeps alive while it runs through the layer, hidden state aside.

        The engine runs a prefill step layer by layer, so that only one layer at a time needs them.
        """
        chunk = min(chunk_tokens, context_tokens)
        keys = context_tokens if self.attention is None else self.attention.keys(context_tokens, chunk)
        passing = sum(piece.passing_prefill_bytes(context_tokens, chunk) for piece in self.caches)
        return self.scratch.size_bytes(chunk, keys) + passing

    def cache_bytes(self, context_tokens: int) -> int:
        """Most bytes of cache that one request of ``context_tokens`` holds between steps."""
        return sum(piece.reserved_bytes(context_tokens) for piece in self.caches)

    def with_kv_bits(self, bits: int, group_size: int, where: str) -> "LayerProfile":
        """The layer with quantised growing caches; raises `LocalProfileError` where one cannot be."""
        caches = tuple(quantised(piece, bits, group_size, where) for piece in self.caches)
        unfused = self.attention is not None and caches != self.caches
        attention = (
            replace(self.attention, fused=False, traced=False)
            if unfused and self.attention
            else self.attention
        )
        return replace(self, caches=caches, attention=attention)

    def to_json(self) -> dict[str, Any]:
        """The layer as a JSON object."""
        return {
            "weight_bytes": self.weight_bytes,
            "active_weight_bytes": self.active_weight_bytes,
            "active_parameters": self.active_parameters,
            "parameter_count": self.parameter_count,
            "scratch": self.scratch.to_json(),
            "caches": [piece.to_json() for piece in self.caches],
            "attention": None if self.attention is None else self.attention.to_json(),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> "LayerProfile":
        """Reads `to_json`'s form; raises `LocalProfileError` where it is not one."""
        reader = Reader(value, where, LocalProfileError)
        reader.only({*cls.__dataclass_fields__, "count"})
        attention = reader.fields.get("attention")
        return cls(
            weight_bytes=reader.integer("weight_bytes"),
            active_weight_bytes=reader.integer("active_weight_bytes"),
            active_parameters=reader.integer("active_parameters", default=0),
            parameter_count=reader.integer("parameter_count", default=1),
            scratch=Scratch.from_json(reader.get("scratch"), f"{where}.scratch"),
            caches=tuple(
                CachePiece.from_json(piece, f"{where}.caches[{index}]")
                for index, piece in enumerate(reader.array("caches"))
            ),
            attention=None
            if attention is None
            else AttentionFacts.from_json(attention, f"{where}.attention"),
        )


def layers_with_kv_bits(
    layers: tuple[LayerProfile, ...], bits: int, group_size: int
) -> tuple[LayerProfile, ...]:
    """Every layer with quantised growing caches; raises as `LayerProfile.with_kv_bits`."""
    return tuple(layer.with_kv_bits(bits, group_size, f"layer {index}") for index, layer in enumerate(layers))


def layers_to_json(layers: tuple[LayerProfile, ...]) -> list[dict[str, Any]]:
    """Equal neighbours are written once, with a count."""
    return [{"count": len(list(group)), **layer.to_json()} for layer, group in groupby(layers)]


def layers_from_json(reader: Reader, where: str) -> tuple[LayerProfile, ...]:
    """Reads the field ``layers``; raises `LocalProfileError` where it is not as `layers_to_json` writes it."""
    layers: list[LayerProfile] = []
    for index, item in enumerate(reader.array("layers")):
        place = f"{where}.layers[{index}]"
        count = Reader(item, place, LocalProfileError).integer("count", default=1, minimum=1)
        if len(layers) + count > _MAX_LAYERS:
            raise LocalProfileError(f"{place}.count makes more than {_MAX_LAYERS} layers")
        layers += [LayerProfile.from_json(item, place)] * count
    return tuple(layers)
