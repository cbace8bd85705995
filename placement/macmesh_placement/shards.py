"""What each node holds when every layer is split over several of them."""

from dataclasses import dataclass
from typing import Any

from macmesh_placement.checks import Reader, require_integer
from macmesh_placement.errors import LocalProfileError
from macmesh_placement.layers import LayerProfile, layers_from_json, layers_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorShard:
    """What one of several equal nodes holds when every layer is split over them (tensor parallelism).

    Traced from the model's own ``shard()``: what it does not split is whole on each node.

    Attributes:
        ways: Nodes that share every layer.
        layers: Its part of the layers, first to last; activations, caches and attention are its part's too.
        embedding_bytes: Its part of the embeddings.
        norm_bytes: Its part of the final norm.
        head_bytes: Its part of the output projection; 0 where it is tied.
        shared_bytes: Its part of what lies outside the layers and is none of these.
        reductions_per_step: Collective operations in one step.
        reduced_bytes_per_token: Bytes that one node puts into them for each token.
    """

    ways: int
    layers: tuple[LayerProfile, ...]
    embedding_bytes: int
    norm_bytes: int
    head_bytes: int
    shared_bytes: int
    reductions_per_step: int
    reduced_bytes_per_token: int

    def __post_init__(self) -> None:
        require_integer(self.ways, "tensor shard ways", LocalProfileError, minimum=2)
        for name in _SHARD_SIZES:
            require_integer(getattr(self, name), f"tensor shard {name}", LocalProfileError)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters on one node, each counted once."""
        outer = self.embedding_bytes + self.norm_bytes + self.head_bytes + self.shared_bytes
        return outer + sum(layer.weight_bytes for layer in self.layers)

    def to_json(self) -> dict[str, Any]:
        """The shard as a JSON object, its layers as in a profile."""
        sizes = {name: getattr(self, name) for name in _SHARD_SIZES}
        return {"ways": self.ways, **sizes, "layers": layers_to_json(self.layers)}

    @classmethod
    def from_json(cls, value: object, where: str) -> "TensorShard":
        """Reads `to_json`'s form; raises `LocalProfileError` where it is not one."""
        reader = Reader(value, where, LocalProfileError)
        reader.only(cls.__dataclass_fields__)
        return cls(
            ways=reader.integer("ways", minimum=2),
            layers=layers_from_json(reader, where),
            **{name: reader.integer(name) for name in _SHARD_SIZES},
        )


_SHARD_SIZES = (
    "embedding_bytes",
    "norm_bytes",
    "head_bytes",
    "shared_bytes",
    "reductions_per_step",
    "reduced_bytes_per_token",
)
