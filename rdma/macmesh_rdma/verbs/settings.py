"""What a rank needs to know to make links over RDMA devices."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Self

LIBRARY_VARIABLE = "MACMESH_VERBS_LIBRARY"
"""Names the verbs library to open, in place of the system's."""


@dataclasses.dataclass(frozen=True)
class VerbsSettings:
    """What one rank needs to know.

    Attributes:
        devices: By peer, names of our devices towards it, one for each cable; the n-th of both ends are the two ends of
            one cable.
        library: File of the verbs library; empty: the one that the environment names, else the system's.
        os_build: Build of the operating system; both ends of a cable must run the same.
        peers_per_device: To how many peers one device leads at most, anywhere in the group: they share what it has.
        beside: Whether TCP is measured beside it; a link that is slower in every respect is then refused.
    """

    devices: Mapping[int, tuple[str, ...]]
    library: str = ""
    os_build: str = ""
    beside: bool = False
    peers_per_device: int = 1

    @property
    def library_path(self) -> str:
        """The library to open; empty: the system's."""
        return self.library or os.environ.get(LIBRARY_VARIABLE, "")

    def of(self, ranks: Sequence[int]) -> Self:
        """The same for a part of the group, in which the n-th of these ranks has the number n. TCP is not measured."""
        devices = {number: self.devices[rank] for number, rank in enumerate(ranks) if rank in self.devices}
        return dataclasses.replace(self, devices=devices, beside=False)
