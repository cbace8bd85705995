"""A node's drive: the steps by which the state file is replaced, and what a crash at each of them leaves.

The model of `macmesh_daemon.files.write_durably`: a new file is written, synchronised, renamed over the old
one, and the folder is synchronised. `tests/test_drive.py` holds the real code to `PROTOCOL`. What was not
synchronised before a power loss may be there whole, in part or not at all; a killed process loses nothing
that it has handed to the system.
"""

import random
from dataclasses import dataclass, field

from macmesh_daemon.cluster.state import PersistentState

PROTOCOL = ("create", "write", "sync file", "rename", "sync folder")
"""The steps of one replacement, in order."""


class DriveFullError(Exception):
    """The drive has no room for another state."""


class TornStateError(Exception):
    """The state file is not whole: the daemon refuses to start."""


@dataclass
class _File:
    """A file's content: what is on the drive, and what only the system's cache has."""

    state: PersistentState | None = None
    is_torn: bool = False
    cached: PersistentState | None = None


@dataclass
class Drive:
    """One state file.

    Attributes:
        is_full: Whether every write fails.
        skips: Steps that this drive (or a wrong program) leaves out; to see what they are good for.
        acknowledged: What a daemon has last read or completely written: nothing told rests on more.
    """

    is_full: bool = False
    skips: frozenset[str] = frozenset()
    acknowledged: PersistentState = field(default_factory=PersistentState)
    _file: _File = field(default_factory=lambda: _File(PersistentState()))
    _unsynced: list[_File] = field(default_factory=list)

    @property
    def is_torn(self) -> bool:
        """Whether a daemon refuses to start from it."""
        return self._file.is_torn

    @property
    def state(self) -> PersistentState:
        """What a daemon that starts now would read.

        Raises:
            TornStateError: The file is torn.
        """
        file = self._file
        if file.is_torn:
            raise TornStateError
        state = file.cached or file.state
        return PersistentState() if state is None else state

    @state.setter
    def state(self, state: PersistentState) -> None:
        self._file = _File(state)
        self._unsynced = []
        self.acknowledged = state

    def load(self) -> PersistentState:
        """Read the state as a starting daemon does: what it has read, no power loss takes away any more.

        Raises:
            TornStateError: The file is torn.
        """
        state = self.state
        if "sync at start" not in self.skips:
            self._unsynced.clear()
        self.acknowledged = state
        return state

    def write(self, state: PersistentState, steps: int = len(PROTOCOL)) -> None:
        """Replace the state; the process ends after the first ``steps`` steps.

        Raises:
            DriveFullError: Nothing has changed.
        """
        if self.is_full:
            raise DriveFullError
        if steps == len(PROTOCOL) and not self.skips:
            self._file = _File(state)
            self._unsynced.clear()
            self.acknowledged = state
            return
        new = _File()
        for step in PROTOCOL[:steps]:
            if step in self.skips:
                continue
            match step:
                case "write":
                    new.cached = state
                case "sync file":
                    new.state, new.cached = new.cached, None
                case "rename":
                    self._unsynced.append(self._file)
                    self._file = new
                case "sync folder":
                    self._unsynced.clear()
        if steps == len(PROTOCOL):
            self.acknowledged = state

    def lose_power(self, rng: random.Random) -> None:
        """Lose what is not on the drive: renames not synchronised may be undone, bytes may be missing."""
        if self._unsynced and rng.random() < 0.5:
            self._file = rng.choice(self._unsynced)
        self._unsynced = []
        file = self._file
        if file.cached is not None:
            whole = rng.random() < 1 / 3
            file.state, file.cached, file.is_torn = (file.cached if whole else None), None, not whole

    def tear(self) -> None:
        """Damage the file, as a failing drive does."""
        self._file = _File(is_torn=True)

    def copy(self) -> "Drive":
        """A clone of the drive."""
        clone = Drive()
        clone.state = self.state
        return clone
