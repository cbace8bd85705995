"""Which tensors of a model's files a stage reads. Pure; made by the profile process, kept beside the profile."""

from __future__ import annotations

import json
from dataclasses import dataclass

FORMAT = "macmesh-tensors/1"


@dataclass(frozen=True, slots=True)
class TensorMap:
    """Names of tensors in the files, by the part of the model that is computed from them.

    A name may be in several parts: a tied embedding is in ``head`` and ``tail``.

    Attributes:
        layers: For each layer, its tensors.
        head: What the first stage reads beside its layers.
        tail: What the last one reads.
        every: What every stage reads.
    """

    layers: tuple[frozenset[str], ...]
    head: frozenset[str]
    tail: frozenset[str]
    every: frozenset[str]

    def needed(self, first_layer: int, end_layer: int) -> frozenset[str]:
        """The tensors that the stage of layers ``first_layer`` to ``end_layer - 1`` reads, and no others.

        Raises:
            ValueError: That is no range of the model's layers.
        """
        count = len(self.layers)
        if not 0 <= first_layer < end_layer <= count:
            raise ValueError(f"layers {first_layer} to {end_layer} are no range of {count}")
        names = self.every.union(*self.layers[first_layer:end_layer])
        if first_layer == 0:
            names |= self.head
        if end_layer == count:
            names |= self.tail
        return names

    def to_json_text(self) -> str:
        """The map as JSON."""
        value = {
            "format": FORMAT,
            "layers": [sorted(names) for names in self.layers],
            "head": sorted(self.head),
            "tail": sorted(self.tail),
            "every": sorted(self.every),
        }
        return json.dumps(value)

    @classmethod
    def from_json_text(cls, text: str) -> TensorMap:
        """Read what `to_json_text` wrote.

        Raises:
            ValueError: It is no such text.
        """
        try:
            value = json.loads(text)
            if value["format"] != FORMAT:
                raise ValueError(f"the format is {value['format']!r}, not {FORMAT!r}")
            return cls(
                layers=tuple(_names(names) for names in value["layers"]),
                head=_names(value["head"]),
                tail=_names(value["tail"]),
                every=_names(value["every"]),
            )
        except (KeyError, TypeError, RecursionError) as problem:
            raise ValueError(f"no map of tensors: {problem!r}") from problem


def _names(value: object) -> frozenset[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise TypeError("names are a list of strings")
    return frozenset(value)
