"""The caches of several requests that are decoded together on one stage."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import mlx.core as mx

from macmesh_daemon.engine.batch_entries import RowCache, batch_entry, single_entry
from macmesh_daemon.engine.cache_fit import round_up_tokens
from macmesh_daemon.engine.cache_ghosts import Positions, advance_ghost
from macmesh_daemon.engine.cache_members import arrays_described, members
from macmesh_daemon.engine.caches import StageCaches, bytes_of, can_cut, copy_states, lowest_trim_limit
from macmesh_daemon.engine.errors import LocalStageError


@dataclasses.dataclass
class BatchCaches:
    """Caches whose rows are requests, padded on the left to the same end; made by `compose`.

    Allocated for the capacity when they are composed: no decode step allocates, none waits for the device.
    """

    entries: list[Any]
    """mlx-lm's batch caches, in the order of `make_prompt_cache`."""
    owned: tuple[int, ...]
    """Indices of those that this stage's layers fill."""
    capacity_tokens: int
    """Most tokens of the longest row."""
    lengths: list[int]
    """Tokens of each row so far."""
    positions: Positions
    """The same on the device."""
    end: int
    """Where the next token is written, the same for all rows."""

    @property
    def nbytes(self) -> int:
        """Bytes that the caches hold."""
        return bytes_of(self.entries)

    def advance(self, tokens: int) -> None:
        """Begins a step of so many tokens for each row.

        Raises:
            LocalStageError: it would make the caches grow.
        """
        if self.end + tokens > self.capacity_tokens:
            raise LocalStageError(
                f"{tokens} tokens after {self.end} are more than the {self.capacity_tokens} that the batch is for"
            )
        self.end += tokens
        self.lengths = [length + tokens for length in self.lengths]
        self.positions.advance(tokens)

    def advance_ghost(self, index: int, tokens: int) -> None:
        """Advances the cache of a foreign layer in the step that has begun."""
        advance_ghost(self.entries[index], tokens, self.positions)

    def copy_states(self, indices: Iterable[int]) -> None:
        """Describes copies of the recurrent states that a step of several tokens left as views."""
        copy_states(self.entries[index] for index in indices)

    def arrays_at(self, indices: Iterable[int]) -> list[mx.array]:
        """Arrays of some of the caches."""
        return [
            array
            for index in indices
            for member in members(self.entries[index])
            for array in arrays_described(member)
        ]

    def owned_arrays(self) -> list[mx.array]:
        """Arrays that a step changes; also the positions of foreign layers, which would else pile up as a graph."""
        return [*self.arrays_at(range(len(self.entries))), self.positions.after]

    def counters(self) -> list[mx.array]:
        """See `Caches.counters`."""
        found = [self.positions.after]
        for entry in self.entries:
            for member in members(entry):
                for name in ("offset", "left_padding", "lengths"):
                    value = getattr(member, name, None)
                    if isinstance(value, mx.array):
                        found.append(value)
        return found


@dataclasses.dataclass(frozen=True, slots=True)
class BatchRow:
    """A request's caches, as a row to be or a row that is."""

    caches: StageCaches | BatchCaches
    row: int | None = None
    """In the batch; None: the caches are one request's."""

    @property
    def length(self) -> int:
        """Tokens of this request so far."""
        if isinstance(self.caches, StageCaches):
            return self.caches.length
        return self.caches.lengths[self.row or 0]

    @property
    def trim_below_tokens(self) -> int | None:
        """Up to which length it can be cut back; 0: never; None: always."""
        return lowest_trim_limit(self.caches.entries)

    def can_trim_to(self, tokens: int) -> bool:
        """Whether it can be cut back to its first so many tokens."""
        return can_cut(self.length, tokens, self.trim_below_tokens)

    def entry(self, index: int) -> RowCache:
        """The request's part of one cache."""
        return RowCache(self.caches.entries[index], self.row, self.length)


@dataclasses.dataclass(frozen=True, slots=True)
class Composed:
    """What `compose` made."""

    batch: BatchCaches | None
    leaving: list[StageCaches]


def compose(
    rows: Sequence[BatchRow],
    capacity_tokens: int,
    leaving: Sequence[BatchRow] = (),
    keep_tokens: Sequence[int] = (),
) -> Composed:
    """Makes rows a batch, and rows of a batch caches of their own; the caches that they come from end.

    Cache by cache, each evaluated before the old ones are freed and the next one is begun: what old and new need
    at a time, beyond the larger of them, is one cache of the model.

    Args:
        rows: Of the batch, in order; none: no batch is made.
        capacity_tokens: Most tokens that the longest row will have.
        leaving: Rows of an old batch that are kept, each with as much room as tokens of it are kept.
        keep_tokens: How many tokens of each of these.

    Raises:
        LocalStageError: the longest row is longer than the capacity; nothing has been changed.
    """
    sources = {id(row.caches): row.caches for row in (*rows, *leaving)}
    lengths = [row.length for row in rows]
    end = max(lengths, default=0)
    if end > capacity_tokens:
        raise LocalStageError(f"a row of {end} tokens does not fit a batch of {capacity_tokens}")
    model = next(iter(sources.values()))
    start = mx.array(lengths or [0])
    positions = Positions(start, start)
    allocated = round_up_tokens(capacity_tokens)
    joined_entries: list[Any] = []
    single_entries: list[list[Any]] = [[] for _ in leaving]
    for index in range(len(model.entries)):
        if rows:
            joined_entries.append(batch_entry([row.entry(index) for row in rows], allocated, positions))
            mx.eval([array for member in members(joined_entries[-1]) for array in arrays_described(member)])
        for row, tokens, entries in zip(leaving, keep_tokens, single_entries, strict=True):
            entries.append(single_entry(row.entry(index), tokens))
        for source in sources.values():
            source.entries[index] = None
    batch = (
        BatchCaches(joined_entries, model.owned, capacity_tokens, lengths, positions, end) if rows else None
    )
    return Composed(
        batch,
        [
            StageCaches(entries, model.owned, tokens, tokens)
            for tokens, entries in zip(keep_tokens, single_entries, strict=True)
        ],
    )
