"""Weights that a process has read, kept from one stage for the next one that it loads. Imports mlx."""

from pathlib import Path

import mlx.core as mx

from macmesh_daemon.weights.partial import JOURNAL_NAME, is_partial

Marks = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and time of change, in nanoseconds, of each file."""


class HeldWeights:
    """Evaluated weights by the names that the model gives them; all of one model folder as it was.

    Used by one thread. What is in here takes no memory beside the stage that reads or uses it: the arrays are the same.
    """

    def __init__(self) -> None:
        self._folder = ""
        self._marks: Marks = ()
        self._arrays: dict[str, mx.array] = {}

    @property
    def names(self) -> frozenset[str]:
        """The weights that are held."""
        return frozenset(self._arrays)

    @property
    def held_bytes(self) -> int:
        """Bytes of all of them, each array once."""
        return sum(array.nbytes for array in {id(array): array for array in self._arrays.values()}.values())

    def begin(self, folder: Path) -> None:
        """A stage is to be loaded from ``folder``: lets all go that is of other files, or of files changed since.

        A model is pinned by its config and the headers of its files, so files that were exchanged in place for others
        of the same shapes show only in what the file system tells of them.
        """
        marks = file_marks(folder)
        if (str(folder), marks) != (self._folder, self._marks):
            self._arrays.clear()
        self._folder, self._marks = str(folder), marks

    def find(self, names: list[str], like: mx.array) -> mx.array | None:
        """What is held under one of these names, in the shape and type of ``like``; None where nothing is."""
        for name in names:
            array = self._arrays.get(name)
            if array is not None and array.shape == like.shape and array.dtype == like.dtype:
                return array
        return None

    def keep_only(self, names: frozenset[str]) -> None:
        """Lets all others go; gives their memory back where nothing else uses it."""
        self._arrays = {name: array for name, array in self._arrays.items() if name in names}
        mx.clear_cache()

    def hold(self, name: str, array: mx.array) -> None:
        """Takes an evaluated weight."""
        self._arrays[name] = array


def file_marks(folder: Path) -> Marks:
    """What the file system tells of the config and the weight files, to notice that one was exchanged.

    The holes of a partial model are filled as it goes on, which changes nothing that was read. Its journal is a new
    file only where something that it had noted proved wrong.
    """
    files = [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]
    grows = is_partial(folder)
    if grows and (journal := folder / JOURNAL_NAME).exists():
        found = journal.stat()
        own: Marks = ((journal.name, found.st_ino, 0, 0),)
    else:
        own = ()
    stats = [(file.name, file.stat()) for file in files]
    return own + tuple(
        (name, found.st_ino, found.st_size, 0 if grows else found.st_mtime_ns) for name, found in stats
    )
