"""A page of shared memory in which one thread of a process shows where it is.

The reader needs no help of the process: it sees where a thread stands that holds the interpreter's lock in native code
and will never let it go. The writer's cost is two stores of eight bytes.

Two words, of the machine's own byte order: what the thread does, from the highest bit a sequence number of 44 bits that
every change raises, 8 bits of the activity and 12 of the layer, 0 for none and else one more than its index; then the
step. Each is written by one store, the step first, so the activity that is read is never older than its step.
"""

import contextlib
import dataclasses
import enum
import mmap
import os
from typing import Self

from macmesh_rdma.errors import LocalSharedMemoryError
from macmesh_rdma.shared_memory import create_shared_memory

PAGE_BYTES = 16
_LAYER_BITS, _ACTIVITY_BITS, _SEQUENCE_BITS = 12, 8, 44
_LAYER_MASK = (1 << _LAYER_BITS) - 1
_ACTIVITY_MASK = (1 << _ACTIVITY_BITS) - 1
_SEQUENCE_MASK = (1 << _SEQUENCE_BITS) - 1
_STEP_MASK = (1 << 64) - 1


class Activity(enum.IntEnum):
    """What a thread does."""

    STARTING = 0
    """It has not begun to serve."""
    WARMING_UP = 1
    IDLE = 2
    """It waits for work; that may take any time."""
    STEP = 3
    """It carries out a step."""
    WAITING = 4
    """It waits for another process, within a deadline of that wait's own."""
    UNKNOWN = 255
    """Of another version."""


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """Where the thread stood when it was looked at."""

    sequence: int = 0
    """Another one than before: it has moved."""
    activity: Activity = Activity.STARTING
    step: int = 0
    """The step that it began last; 0: none yet."""
    layer: int | None = None
    """The last layer that it has finished within this step, where it tells."""


class ProgressWriter:
    """The thread's side; one thread may write.

    Args:
        memory: the page; by default one that nobody reads.
    """

    def __init__(self, memory: mmap.mmap | bytearray | None = None) -> None:
        self._words = memoryview(bytearray(PAGE_BYTES) if memory is None else memory).cast("B").cast("Q")
        self._sequence = 0

    @classmethod
    def adopt(cls, descriptor: int) -> Self:
        """Writes to inherited memory, and closes the descriptor.

        Raises:
            LocalSharedMemoryError: it is no page of a `ProgressReader`.
        """
        try:
            return cls(mmap.mmap(descriptor, PAGE_BYTES))
        except (OSError, ValueError) as error:
            raise LocalSharedMemoryError(f"descriptor {descriptor} is no progress page: {error}") from error
        finally:
            with contextlib.suppress(OSError):
                os.close(descriptor)

    def start(self) -> None:
        """The thread begins anew: it serves nothing yet, and no step is done."""
        self._words[1] = 0
        self._set(Activity.STARTING)

    def warm_up(self) -> None:
        """The thread warms up."""
        self._set(Activity.WARMING_UP)

    def idle(self) -> None:
        """The thread waits for work."""
        self._set(Activity.IDLE)

    def turn(self) -> None:
        """The thread has work again, or goes on with its step."""
        self._set(Activity.STEP)

    def step(self, number: int) -> None:
        """The thread begins a step."""
        self._words[1] = number & _STEP_MASK
        self._set(Activity.STEP)

    def layer(self, index: int) -> None:
        """A layer is done, within whatever the thread does."""
        activity = (self._words[0] >> _LAYER_BITS) & _ACTIVITY_MASK
        self._set(activity, min(index + 1, _LAYER_MASK))

    def waiting(self) -> None:
        """The thread waits for another process."""
        self._set(Activity.WAITING)

    def _set(self, activity: int, layer: int = 0) -> None:
        self._sequence = (self._sequence + 1) & _SEQUENCE_MASK
        self._words[0] = self._sequence << (_ACTIVITY_BITS + _LAYER_BITS) | activity << _LAYER_BITS | layer


class ProgressReader:
    """The watcher's side. Makes the page, whose `descriptor` the other process inherits.

    Raises:
        LocalSharedMemoryError: there is no shared memory to be had.
    """

    def __init__(self) -> None:
        self._descriptor = create_shared_memory(PAGE_BYTES)
        try:
            self._memory = mmap.mmap(self._descriptor, PAGE_BYTES, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            self.give_up_descriptor()
            raise LocalSharedMemoryError(f"a progress page cannot be mapped: {error}") from error
        self._words = memoryview(self._memory).cast("Q")

    @property
    def descriptor(self) -> int:
        """For the other process to inherit; -1 once it was given up."""
        return self._descriptor

    def give_up_descriptor(self) -> None:
        """Closes the descriptor, once the other process has it. The page stays readable."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def read(self) -> Reading:
        """Where the thread stands now."""
        word, step = self._words[0], self._words[1]
        layer = word & _LAYER_MASK
        code = (word >> _LAYER_BITS) & _ACTIVITY_MASK
        return Reading(
            sequence=word >> (_ACTIVITY_BITS + _LAYER_BITS),
            activity=Activity(code) if code in _ACTIVITIES else Activity.UNKNOWN,
            step=step,
            layer=layer - 1 if layer else None,
        )

    def close(self) -> None:
        """Unmaps the page; nothing may be read after it."""
        self.give_up_descriptor()
        self._words.release()
        self._memory.close()


_ACTIVITIES = frozenset(int(activity) for activity in Activity)
