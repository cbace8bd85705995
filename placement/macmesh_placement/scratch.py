"""What a prefill step keeps alive while it runs through one layer, as formulas.

The formulas come from the graph of the step (see the profile process): at every operation of the layer the
bytes alive are a polynomial of the step's tokens and of the keys that they attend to, and the largest of the
polynomials is what the layer needs. One more operation may have its outputs allocated before the memory of the
one before is free, as GPUs run behind the host: the largest output is charged beside.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from macmesh_placement.checks import Reader, require_integer
from macmesh_placement.errors import LocalProfileError


class ScratchTerm(NamedTuple):
    """``fixed + token L + key S + pair L S + square L L`` bytes, for L tokens that attend to S keys."""

    fixed_bytes: int
    bytes_per_token: int
    bytes_per_key: int
    bytes_per_pair: int
    bytes_per_square: int = 0

    def size_bytes(self, tokens: int, keys: int) -> int:
        """The bytes for so many tokens and keys."""
        return (
            self.fixed_bytes
            + self.bytes_per_token * tokens
            + self.bytes_per_key * keys
            + self.bytes_per_pair * tokens * keys
            + self.bytes_per_square * tokens * tokens
        )


@dataclass(frozen=True, slots=True)
class Scratch:
    """The formulas of one layer; none of them: nothing.

    Attributes:
        live: What is alive at once, parameters and caches aside; the largest counts.
        largest: What one operation allocates; the largest counts.
    """

    live: tuple[ScratchTerm, ...] = ()
    largest: tuple[ScratchTerm, ...] = ()

    def __post_init__(self) -> None:
        for name in ("live", "largest"):
            for index, term in enumerate(getattr(self, name)):
                for field, value in zip(ScratchTerm._fields, term, strict=True):
                    require_integer(value, f"scratch {name}[{index}] {field}", LocalProfileError)

    def size_bytes(self, tokens: int, keys: int) -> int:
        """Bytes that a step of so many tokens and keys needs."""
        return sum(
            max((term.size_bytes(tokens, keys) for term in terms), default=0)
            for terms in (self.live, self.largest)
        )

    def to_json(self) -> dict[str, Any]:
        """The formulas as lists of their coefficients."""
        return {"live": [list(term) for term in self.live], "largest": [list(term) for term in self.largest]}

    @classmethod
    def from_json(cls, value: object, where: str) -> "Scratch":
        """Reads `to_json`'s form; raises `LocalProfileError` where it is not one."""
        reader = Reader(value, where, LocalProfileError)
        reader.only(cls.__dataclass_fields__)
        return cls(
            live=_terms(reader.array("live"), f"{where}.live"),
            largest=_terms(reader.array("largest"), f"{where}.largest"),
        )


def _terms(items: list[Any], where: str) -> tuple[ScratchTerm, ...]:
    terms = []
    for index, item in enumerate(items):
        if not isinstance(item, list) or len(item) != len(ScratchTerm._fields):
            raise LocalProfileError(f"{where}[{index}] must be a list of {len(ScratchTerm._fields)} numbers")
        terms.append(ScratchTerm(*item))
    return tuple(terms)
