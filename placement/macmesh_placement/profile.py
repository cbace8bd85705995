"""What a model costs, as plain data: the input of the ledger and of the planner.

A profile is made once per model by the profile process (`macmesh-profile`), which traces mlx-lm's own code,
and travels as JSON (``"format": "macmesh-profile/2"``). Sizes are bytes; "per token" means one token of one
request.
"""

import json
from dataclasses import dataclass, field, replace
from typing import Any

from macmesh_placement.cachecost import CachePiece
from macmesh_placement.checks import Reader, parse, require_integer
from macmesh_placement.errors import LocalProfileError
from macmesh_placement.kvbits import quantised, require_kv_bits
from macmesh_placement.layers import LayerProfile, layers_from_json, layers_to_json, layers_with_kv_bits
from macmesh_placement.shards import TensorShard

PROFILE_FORMAT = "macmesh-profile/2"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProfile:
    """What a model costs.

    Attributes:
        model_id: What the user calls the model.
        model_type: ``model_type`` of its config.
        digest: SHA-256, hex, over its config, weight index and safetensors headers.
        layers: Its layers, first to last.
        embedding_bytes: Token embeddings, and what else the first stage needs outside the layers (learned
            positions, norms and projections of the embedding).
        norm_bytes: The final norm, and what else the last stage alone needs beside the head.
        head_bytes: The output projection; 0 where it is tied to the embedding.
        tied: The output projection is the embedding.
        head_copy_bytes: Of `embedding_bytes`, what the last stage needs too where the head is tied; None: all.
        shared_bytes: Parameters outside the layers that are none of these; every stage holds them.
        outer_parameter_count: Arrays of the four above together.
        head_caches: Caches that belong to no layer; the first stage holds them.
        hidden_size: Width of the hidden state that stages hand on.
        vocab_size: Tokens in the vocabulary.
        activation_bytes: Bytes of one element of the hidden state.
        handover_bytes: Bytes of one token that a stage hands to the next, where more crosses than the hidden
            state: the most over all cut points; 0 where it does not.
        position_limit: Most tokens of context that the config allows; None where it names none.
        cut_points: Layer numbers before which the model may be cut into stages, ascending, 0 and the layer
            count left out.
        cut_reason: Why not everywhere; empty where every boundary is allowed.
        weights_source: ``"headers"`` (counted from the weight files) or ``"config"`` (no weights at hand).
        scratch_source: ``"graph"`` (read off the graph of a step) or ``"projections"`` (estimated from the
            outputs of the projections, where mlx does not hand the graph over).
        mlx_lm_version: Version whose code was traced.
        tensor_shards: For each number of nodes that the model can be split over by tensor parallelism.
        kv_bits: Bits of one element in the growing caches; 0 where they keep the dtype of keys and values.
        kv_bits_problem: Why the model's code cannot run on quantised caches; empty where it can.
    """

    model_id: str
    model_type: str
    digest: str
    layers: tuple[LayerProfile, ...]
    embedding_bytes: int
    norm_bytes: int
    head_bytes: int
    tied: bool
    hidden_size: int
    vocab_size: int
    activation_bytes: int
    position_limit: int | None
    cut_points: tuple[int, ...]
    cut_reason: str = ""
    handover_bytes: int = 0
    shared_bytes: int = 0
    outer_parameter_count: int = 3
    head_copy_bytes: int | None = None
    head_caches: tuple[CachePiece, ...] = field(default=())
    weights_source: str = "headers"
    scratch_source: str = "graph"
    mlx_lm_version: str = ""
    tensor_shards: tuple[TensorShard, ...] = ()
    kv_bits: int = 0
    kv_bits_problem: str = ""

    def __post_init__(self) -> None:
        if not self.layers:
            raise LocalProfileError("profile layers is empty: a model has at least one layer")
        for name in (
            "embedding_bytes",
            "norm_bytes",
            "head_bytes",
            "handover_bytes",
            "shared_bytes",
            "outer_parameter_count",
            "kv_bits",
        ):
            require_integer(getattr(self, name), f"profile {name}", LocalProfileError)
        for name in ("hidden_size", "vocab_size", "activation_bytes"):
            require_integer(getattr(self, name), f"profile {name}", LocalProfileError, minimum=1)
        if self.position_limit is not None:
            require_integer(self.position_limit, "profile position_limit", LocalProfileError, minimum=1)
        self._require_consistent_head()
        for shard in self.tensor_shards:
            if len(shard.layers) != len(self.layers):
                raise LocalProfileError(
                    f"profile tensor_shards of {shard.ways} has {len(shard.layers)} layers, "
                    f"the model {len(self.layers)}"
                )
        previous = 0
        for cut in self.cut_points:
            require_integer(cut, "profile cut_points", LocalProfileError, minimum=1)
            if not previous < cut < len(self.layers):
                raise LocalProfileError(
                    f"profile cut_points must ascend in 1..{len(self.layers) - 1}, not {cut} after {previous}"
                )
            previous = cut

    def _require_consistent_head(self) -> None:
        if self.tied and self.head_bytes:
            raise LocalProfileError("profile head_bytes must be 0 where the head is tied to the embedding")
        if self.head_copy_bytes is not None:
            require_integer(self.head_copy_bytes, "profile head_copy_bytes", LocalProfileError)
            if not self.tied or self.head_copy_bytes > self.embedding_bytes:
                raise LocalProfileError(
                    "profile head_copy_bytes is a part of embedding_bytes, where the head is tied"
                )

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def handover_row_bytes(self) -> int:
        """Bytes of one token that crosses from stage to stage."""
        return max(self.handover_bytes, self.hidden_size * self.activation_bytes)

    @property
    def tail_bytes(self) -> int:
        """What the last stage holds beside its layers: norm, and the head or its copy of the embedding."""
        return self.norm_bytes + (self.tied_copy_bytes if self.tied else self.head_bytes)

    @property
    def tied_copy_bytes(self) -> int:
        """What the first and the last stage both hold where they differ; 0 where the head is not tied."""
        if not self.tied:
            return 0
        return self.embedding_bytes if self.head_copy_bytes is None else self.head_copy_bytes

    @property
    def total_weight_bytes(self) -> int:
        """Bytes of all parameters, each counted once."""
        outer = self.embedding_bytes + self.norm_bytes + self.head_bytes + self.shared_bytes
        return outer + sum(layer.weight_bytes for layer in self.layers)

    def with_kv_bits(self, bits: int, group_size: int = 64) -> "ModelProfile":
        """The profile with the growing caches quantised, as mlx-lm's ``QuantizedKVCache`` allocates them.

        Args:
            bits: Bits of one element: 2, 3, 4, 5, 6 or 8.
            group_size: Elements that share a scale and a bias: 32, 64 or 128.

        Raises:
            LocalProfileError: mlx-lm cannot quantise one of the caches (the message names its kind and the
                layer), no cache would be smaller for it, or the model's code cannot run on quantised ones.
        """
        require_kv_bits(bits, group_size)
        if self.kv_bits:
            raise LocalProfileError(f"the caches of this profile are already of {self.kv_bits} bits")
        pieces = [piece for layer in self.layers for piece in layer.caches]
        if not any(piece.kind == "growing" for piece in [*pieces, *self.head_caches]):
            kinds = ", ".join(sorted({piece.kind for piece in pieces})) or "no"
            raise LocalProfileError(
                f"{self.model_type} has {kinds} caches only, which mlx-lm cannot quantise: "
                "plan without kv_bits"
            )
        layers = layers_with_kv_bits(self.layers, bits, group_size)
        head_caches = tuple(
            quantised(piece, bits, group_size, "the first stage") for piece in self.head_caches
        )
        if self.kv_bits_problem:
            raise LocalProfileError(
                f"{self.model_type} cannot run on quantised caches: {self.kv_bits_problem}; "
                "plan without kv_bits"
            )
        shards = tuple(
            replace(shard, layers=layers_with_kv_bits(shard.layers, bits, group_size))
            for shard in self.tensor_shards
        )
        return replace(self, layers=layers, head_caches=head_caches, tensor_shards=shards, kv_bits=bits)

    def to_json(self) -> dict[str, Any]:
        """The profile as a JSON object; equal neighbours among the layers are written once, with a count."""
        plain = {name: getattr(self, name) for name in _PLAIN_FIELDS}
        return {
            "format": PROFILE_FORMAT,
            **plain,
            "cut_points": "all"
            if self.cut_points == all_cut_points(self.layer_count)
            else list(self.cut_points),
            "head_caches": [piece.to_json() for piece in self.head_caches],
            "layers": layers_to_json(self.layers),
            "tensor_shards": [shard.to_json() for shard in self.tensor_shards],
        }

    def to_json_text(self) -> str:
        """The profile as JSON text."""
        return json.dumps(self.to_json(), indent=2) + "\n"

    @classmethod
    def from_json(cls, value: object) -> "ModelProfile":
        """Reads `to_json`'s form.

        Raises:
            LocalProfileError: The value is not a profile; the message names the field.
        """
        reader = Reader(value, "profile", LocalProfileError)
        found = reader.text("format")
        if found != PROFILE_FORMAT:
            raise LocalProfileError(
                f"profile.format must be {PROFILE_FORMAT!r}, not {found!r}: profile the model anew"
            )
        reader.only({*cls.__dataclass_fields__, "format"})
        layers = layers_from_json(reader, "profile")
        cuts = reader.get("cut_points")
        return cls(
            model_id=reader.text("model_id"),
            model_type=reader.text("model_type"),
            digest=reader.text("digest"),
            layers=layers,
            embedding_bytes=reader.integer("embedding_bytes"),
            norm_bytes=reader.integer("norm_bytes"),
            head_bytes=reader.integer("head_bytes"),
            tied=reader.flag("tied"),
            hidden_size=reader.integer("hidden_size", minimum=1),
            vocab_size=reader.integer("vocab_size", minimum=1),
            activation_bytes=reader.integer("activation_bytes", minimum=1),
            position_limit=reader.optional_integer("position_limit", minimum=1),
            cut_points=all_cut_points(len(layers)) if cuts == "all" else tuple(reader.array("cut_points")),
            cut_reason=reader.text("cut_reason", default=""),
            handover_bytes=reader.integer("handover_bytes", default=0),
            shared_bytes=reader.integer("shared_bytes", default=0),
            outer_parameter_count=reader.integer("outer_parameter_count", default=3),
            head_copy_bytes=reader.optional_integer("head_copy_bytes"),
            head_caches=tuple(
                CachePiece.from_json(piece, f"profile.head_caches[{index}]")
                for index, piece in enumerate(reader.array("head_caches", default=[]))
            ),
            weights_source=reader.text("weights_source", default="headers"),
            scratch_source=reader.text("scratch_source", default="graph"),
            mlx_lm_version=reader.text("mlx_lm_version", default=""),
            tensor_shards=tuple(
                TensorShard.from_json(shard, f"profile.tensor_shards[{index}]")
                for index, shard in enumerate(reader.array("tensor_shards", default=[]))
            ),
            kv_bits=reader.integer("kv_bits", default=0),
            kv_bits_problem=reader.text("kv_bits_problem", default=""),
        )

    @classmethod
    def from_json_text(cls, text: str) -> "ModelProfile":
        """Reads `to_json_text`'s form; raises `LocalProfileError` where it is not one."""
        return cls.from_json(parse(text, "profile", LocalProfileError))


_PLAIN_FIELDS = tuple(
    name
    for name in ModelProfile.__dataclass_fields__
    if name not in {"layers", "cut_points", "head_caches", "tensor_shards"}
)


def all_cut_points(layer_count: int) -> tuple[int, ...]:
    """Every boundary between two of ``layer_count`` layers."""
    return tuple(range(1, layer_count))
