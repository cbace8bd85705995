"""Decides where each missing piece comes from. Pure: ``step(event, now) -> effects``.

Other nodes come first, the near and idle ones before the others, several at once. What a node sends must have
the hash that the nodes agree on: up to three are asked for it before anything is fetched. Who sends or states
another one is given up for this model. A hub is asked only for what no node has, and by one node alone: the
first of those that need the piece and can be reached. The others wait, and get it from that one as it arrives.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from macmesh_daemon.weights.fetch_events import (
    HUB,
    Abandon,
    AskHashes,
    AskHoldings,
    BatchEnded,
    Effect,
    Event,
    Failed,
    Fetch,
    FetchSettings,
    Finished,
    HashesTold,
    HoldingsFailed,
    HoldingsTold,
    PieceCorrupt,
    PiecesArrived,
    Quarantine,
    Tick,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from macmesh_daemon.weights.pieces import Piece

__all__ = [
    "HUB",
    "Abandon",
    "AskHashes",
    "AskHoldings",
    "BatchEnded",
    "Effect",
    "Event",
    "Failed",
    "Fetch",
    "FetchSettings",
    "Fetching",
    "Finished",
    "HashesTold",
    "HoldingsFailed",
    "HoldingsTold",
    "PieceCorrupt",
    "PiecesArrived",
    "Quarantine",
    "Tick",
]


@dataclass(slots=True)
class _Source:
    name: str
    held: frozenset[Piece] | None = None
    busy: bool = False
    distance: float = 0.0
    asking: bool = False
    ask_at: float = 0.0
    failures: int = 0
    retry_at: float = 0.0
    last_reason: str = ""
    quarantined: bool = False
    batches: set[int] = field(default_factory=set)

    @property
    def is_hub(self) -> bool:
        return self.name == HUB


@dataclass(slots=True)
class _Batch:
    source: str
    pieces: dict[Piece, None]
    is_settled: bool = False
    #: The source itself could not be asked for hashes.
    is_unanswered: bool = False
    awaiting: set[str] = field(default_factory=set)
    claims: dict[Piece, dict[str, str]] = field(default_factory=dict)


class Fetching:
    """One fetch of one model.

    Args:
        wanted: What is missing, in the order in which it is best fetched.
        peers: The other members, the nearest first where that is known.
        node_id: This node.
        hub_order: For a piece, the nodes that need it, the one that downloads it first; asked only with a hub.
        has_hub: Whether there is a hub to fall back to.
        quarantined: Nodes that are given up for this model from before.
        settings: See there.
        now: The present.
    """

    def __init__(
        self,
        *,
        wanted: Sequence[Piece],
        peers: Sequence[str],
        node_id: str,
        now: float,
        hub_order: Callable[[Piece], Sequence[str]] = lambda _piece: (),
        has_hub: bool = False,
        quarantined: Iterable[str] = (),
        settings: FetchSettings | None = None,
    ) -> None:
        self._settings = settings or FetchSettings()
        self._node_id = node_id
        self._hub_order = hub_order
        given_up = frozenset(quarantined)
        self._peers = {
            name: _Source(name, ask_at=now, quarantined=name in given_up)
            for name in dict.fromkeys(peers)
            if name != node_id
        }
        self._hub = _Source(HUB, held=frozenset()) if has_hub else None
        self._missing: dict[Piece, None] = dict.fromkeys(wanted)
        self._assigned: dict[Piece, int] = {}
        self._expected: dict[Piece, str] = {}
        self._batches: dict[int, _Batch] = {}
        self._numbers = itertools.count(1)
        self._gathered_at = now + self._settings.gather_seconds
        self._progress_at = now
        self._orphans_since: float | None = None
        self._over = False
        self._driven_at = now
        #: Whether some piece that nobody fetches is held by no usable node.
        self._has_unheld = False

    @property
    def missing(self) -> tuple[Piece, ...]:
        """What has not come yet."""
        return tuple(self._missing)

    def step(self, event: Event, now: float) -> list[Effect]:  # noqa: C901  one case per event
        """Take in what happened and say what to do. After `Finished` or `Failed` nothing more is said."""
        effects: list[Effect] = []
        if self._over:
            return effects
        match event:
            case HoldingsTold():
                self._on_holdings(event, now)
            case HoldingsFailed():
                source = self._peers.get(event.peer)
                if source is not None:
                    source.asking = False
                    self._failed(source, event.reason, now)
                    source.ask_at = source.retry_at
            case HashesTold():
                self._on_hashes(event, now, effects)
            case PiecesArrived():
                self._on_arrival(event, now)
            case PieceCorrupt():
                text = f"it sent other bytes of {event.piece.file} than the nodes agree on"
                self._give_up(event.source, text, now, effects)
            case BatchEnded():
                self._on_end(event, now)
            case Tick():
                pass
        if not self._over:
            self._drive(now, effects)
        return effects

    def next_deadline(self) -> float | None:
        """When a `Tick` is due at the latest; None once it is over."""
        if self._over:
            return None
        times = [self._progress_at + self._settings.stall_seconds, self._gathered_at]
        for source in self._usable():
            if not source.asking and self._is_worth_asking(source):
                times.append(source.ask_at)
            times.append(source.retry_at)
        if self._hub is not None:
            times.append(self._hub.retry_at)
        if self._orphans_since is not None:
            times.append(self._orphans_since + self._settings.orphan_seconds)
        return min(time for time in times if time > self._driven_at)

    # What happened.

    def _on_holdings(self, event: HoldingsTold, now: float) -> None:
        source = self._peers.get(event.peer)
        if source is None:
            return
        source.asking = False
        source.held = event.pieces
        source.busy, source.distance = event.busy, event.distance
        source.ask_at = now + self._settings.ask_seconds
        if not source.batches:
            source.failures = 0

    def _on_hashes(self, event: HashesTold, now: float, effects: list[Effect]) -> None:
        batch = self._batches.get(event.batch)
        if batch is None or event.peer not in batch.awaiting:
            return
        batch.awaiting.discard(event.peer)
        for piece, sha256 in event.hashes.items():
            if piece in batch.claims:
                batch.claims[piece][event.peer] = sha256
        source = self._peers[event.peer]
        if event.reason:
            batch.is_unanswered |= event.peer == batch.source
            self._failed(source, event.reason, now)
        if not batch.awaiting:
            self._settle(event.batch, batch, now, effects)

    def _on_arrival(self, event: PiecesArrived, now: float) -> None:
        for piece in event.pieces:
            if piece not in self._missing:
                continue
            del self._missing[piece]
            self._expected.pop(piece, None)
            number = self._assigned.pop(piece, None)
            if number is not None:
                del self._batches[number].pieces[piece]
            self._progress_at = now
        source = self._source(event.source)
        if source is not None:
            source.failures = 0

    def _on_end(self, event: BatchEnded, now: float) -> None:
        batch = self._batches.get(event.batch)
        if batch is None:
            return
        source = self._source(batch.source)
        left = bool(batch.pieces)
        self._release(event.batch)
        if source is None:
            return
        if event.reason or left:
            self._failed(source, event.reason or "it sent less than it was asked for", now)
            if not source.is_hub:
                source.ask_at = source.retry_at  # what it holds may have changed

    # What is to be done.

    def _drive(self, now: float, effects: list[Effect]) -> None:
        self._driven_at = now
        if not self._missing:
            self._end(Finished(), effects)
            return
        held = self._held_by(self._usable())
        self._has_unheld = any(piece not in held for piece in self._pending())
        for source in self._usable():
            if not source.asking and now >= source.ask_at and self._is_worth_asking(source):
                source.asking = True
                effects.append(AskHoldings(source.name))
        if now >= self._gathered_at or not any(s.held is None and not s.failures for s in self._usable()):
            self._assign_peers(now, effects)
        self._assign_hub(now, effects)
        if not self._over:
            self._look_for_the_end(now, effects)

    def _assign_peers(self, now: float, effects: list[Effect]) -> None:
        idle_held = self._held_by(source for source in self._usable() if not source.busy)
        while True:
            free = [
                source
                for source in self._usable()
                if now >= source.retry_at and len(source.batches) < self._streams(source)
            ]
            free.sort(key=lambda s: (s.busy, len(s.batches), s.distance))
            for source in free:
                # A busy node serves requests: it is asked only for what no idle one has.
                pieces = self._choose(source.held or frozenset(), idle_held if source.busy else frozenset())
                if pieces:
                    self._begin(source, pieces, effects)
                    break
            else:
                return

    def _assign_hub(self, now: float, effects: list[Effect]) -> None:
        hub = self._hub
        if hub is None or any(source.held is None and not self._is_gone(source) for source in self._usable()):
            return  # not before every node was asked
        held = self._held_by(self._usable())
        while now >= hub.retry_at and len(hub.batches) < self._settings.hub_streams:
            mine = (piece for piece in self._pending() if piece not in held and self._is_mine(piece))
            pieces = self._bounded(mine, self._settings.hub_batch_bytes)
            if not pieces:
                return
            number = self._new_batch(hub, pieces)
            effects.append(Fetch(number, HUB, dict.fromkeys(pieces, "")))

    def _begin(self, source: _Source, pieces: list[Piece], effects: list[Effect]) -> None:
        number = self._new_batch(source, pieces)
        batch = self._batches[number]
        unknown = [piece for piece in pieces if piece not in self._expected]
        if not unknown:
            batch.is_settled = True
            effects.append(Fetch(number, source.name, {piece: self._expected[piece] for piece in pieces}))
            return
        batch.claims = {piece: {} for piece in unknown}
        others = [s for s in self._usable() if s is not source and s.held and not s.failures]
        others.sort(key=lambda s: (s.busy, s.distance))
        voters = [source, *others[: self._settings.voters - 1]]
        for voter in voters:
            asked = tuple(piece for piece in unknown if voter.held and piece in voter.held)
            if asked:
                batch.awaiting.add(voter.name)
                effects.append(AskHashes(number, voter.name, asked))

    def _settle(self, number: int, batch: _Batch, now: float, effects: list[Effect]) -> None:
        """Decide on the hashes of a batch, now that all who were asked have answered."""
        liars, disputed = self._count(batch)
        if disputed:
            names = " and ".join(sorted(name[:8] for name in batch.claims[disputed[0]]))
            self._end(
                Failed(
                    f"nodes {names} have models of the same layout, but other bytes in {disputed[0].file}, and no "
                    "third one says who is right: remove the wrong one",
                    is_content=True,
                ),
                effects,
            )
            return
        source = self._source(batch.source)
        for name, piece in liars.items():
            self._give_up(name, f"its bytes of {piece.file} are not those of the other nodes", now, effects)
        if source is None or source.quarantined or number not in self._batches:
            return
        known = {piece: self._expected[piece] for piece in batch.pieces if piece in self._expected}
        if without := [piece for piece in batch.pieces if piece not in known]:
            for piece in without:
                del batch.pieces[piece]
                del self._assigned[piece]
            if not batch.is_unanswered:
                # Until it is asked again, it counts as one that lacks them.
                source.held = (source.held or frozenset()).difference(without)
                self._failed(source, "it gives no hashes of what it said it holds", now)
        if not known:
            self._release(number)
            return
        batch.is_settled = True
        effects.append(Fetch(number, batch.source, known))

    def _count(self, batch: _Batch) -> tuple[dict[str, Piece], list[Piece]]:
        """Note the hashes that most agree on; who states others, and the pieces on which there is a tie."""
        liars: dict[str, Piece] = {}
        disputed: list[Piece] = []
        for piece, claims in batch.claims.items():
            counts = Counter(sha for name, sha in claims.items() if not self._peers[name].quarantined)
            if not counts:
                continue
            [(sha256, votes), *_] = counts.most_common(1)
            if 2 * votes > counts.total():
                self._expected[piece] = sha256
                liars |= {name: piece for name, said in claims.items() if said != sha256}
            else:
                disputed.append(piece)
        return liars, disputed

    def _look_for_the_end(self, now: float, effects: list[Effect]) -> None:
        stalled = now - self._progress_at
        if stalled >= self._settings.stall_seconds:
            self._end(Failed(f"nothing came for {stalled:.0f} s; {self._state_of_things()}"), effects)
            return
        if any(source.asking for source in self._usable()):
            return
        is_orphaned = self._hub is None and self._has_unheld and not self._batches
        if not is_orphaned:
            self._orphans_since = None
        elif self._orphans_since is None:
            self._orphans_since = now
        elif now - self._orphans_since >= self._settings.orphan_seconds:
            self._end(Failed(f"no node has it all; {self._state_of_things()}"), effects)

    def _end(self, effect: Finished | Failed, effects: list[Effect]) -> None:
        effects.extend(Abandon(number) for number in self._batches)
        effects.append(effect)
        self._over = True

    def _give_up(self, name: str, reason: str, now: float, effects: list[Effect]) -> None:
        source = self._peers.get(name)
        if source is None:
            if self._hub is not None:
                self._failed(self._hub, reason, now)
            return
        if source.quarantined:
            return
        source.quarantined = True
        source.last_reason = reason
        effects.append(Quarantine(name, reason))
        for number in list(source.batches):
            self._release(number)
            effects.append(Abandon(number))
        for number, batch in list(self._batches.items()):
            batch.awaiting.discard(name)
            if number in self._batches and not batch.is_settled and not batch.awaiting:
                self._settle(number, batch, now, effects)

    def _failed(self, source: _Source, reason: str, now: float) -> None:
        wait = self._settings.retry_min_seconds * 2 ** min(source.failures, 20)
        source.failures += 1
        source.retry_at = now + min(self._settings.retry_max_seconds, wait)
        source.last_reason = reason

    def _new_batch(self, source: _Source, pieces: list[Piece]) -> int:
        number = next(self._numbers)
        self._batches[number] = _Batch(source.name, dict.fromkeys(pieces))
        source.batches.add(number)
        self._assigned.update(dict.fromkeys(pieces, number))
        return number

    def _release(self, number: int) -> None:
        batch = self._batches.pop(number)
        source = self._source(batch.source)
        if source is not None:
            source.batches.discard(number)
        for piece in batch.pieces:
            self._assigned.pop(piece, None)

    # Questions.

    def _source(self, name: str) -> _Source | None:
        return self._hub if name == HUB else self._peers.get(name)

    def _usable(self) -> list[_Source]:
        return [source for source in self._peers.values() if not source.quarantined]

    def _streams(self, source: _Source) -> int:
        return 1 if source.busy or source.failures else self._settings.streams_per_peer

    def _pending(self) -> Iterable[Piece]:
        return (piece for piece in self._missing if piece not in self._assigned)

    def _held_by(self, sources: Iterable[_Source]) -> frozenset[Piece]:
        return frozenset().union(*(source.held or () for source in sources))

    def _choose(self, held: frozenset[Piece], besides: frozenset[Piece]) -> list[Piece]:
        mine = (piece for piece in self._pending() if piece in held and piece not in besides)
        return self._bounded(mine, self._settings.batch_bytes)

    def _bounded(self, pieces: Iterable[Piece], most_bytes: int) -> list[Piece]:
        chosen: list[Piece] = []
        size = 0
        for piece in pieces:
            if chosen and (
                size + piece.size_bytes > most_bytes or len(chosen) >= self._settings.batch_pieces
            ):
                break
            chosen.append(piece)
            size += piece.size_bytes
        return chosen

    def _is_worth_asking(self, source: _Source) -> bool:
        """Whether a node that was asked before may have got something since that nobody else has."""
        return source.held is None or self._has_unheld

    def _is_mine(self, piece: Piece) -> bool:
        """Whether this node is to download the piece: nobody that comes before it can be reached."""
        for name in self._hub_order(piece):
            if name == self._node_id:
                return True
            source = self._peers.get(name)
            if source is not None and not source.quarantined and not self._is_gone(source):
                return False
        return True

    def _is_gone(self, source: _Source) -> bool:
        return source.failures >= self._settings.gone_after_failures

    def _state_of_things(self) -> str:
        size = sum(piece.size_bytes for piece in self._missing)
        lines = [f"{size} bytes in {len(self._missing)} pieces are missing"]
        sources = [*self._peers.values(), *([self._hub] if self._hub is not None else [])]
        for source in sources:
            has = "" if source.is_hub else f" has {len(source.held or ())} of them"
            why = f" ({source.last_reason})" if source.last_reason else ""
            lines.append(f"{'the hub' if source.is_hub else 'node ' + source.name[:8]}{has}{why}")
        if len(sources) == 0:
            lines.append("there is no other node")
        return "; ".join(lines)
