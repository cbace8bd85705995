"""A break."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One break.

    Attributes:
        name: What is wrong.
        file: In the package.
        old: Text that occurs exactly once in it.
        new: What takes its place.
        endangers: The invariant or promise that rests on it.
        package: In ``macmesh_daemon``.
    """

    name: str
    file: str
    old: str
    new: str
    endangers: str
    package: str = "cluster"
