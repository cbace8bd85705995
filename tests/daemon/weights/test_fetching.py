"""The pure planner of fetches: single decisions, and whole clusters of it in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from macmesh_daemon.weights import fetching as f
from macmesh_daemon.weights.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MB = 1 << 20
PIECES = tuple(Piece("model.safetensors", 8 * MB * i, 8 * MB * (i + 1)) for i in range(12))


def machine(
    peers: Iterable[str], wanted: Iterable[Piece] = PIECES, *, has_hub: bool = False, **other: object
) -> f.Fetching:
    quick = f.FetchSettings(gather_seconds=0)
    values: dict[str, object] = {"node_id": "me", "now": 0.0, "has_hub": has_hub, "settings": quick, **other}
    return f.Fetching(wanted=tuple(wanted), peers=tuple(peers), **values)  # type: ignore[arg-type]


def only(effects: list[f.Effect], kind: type) -> list[f.Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def told(effects: list[f.Effect], m: f.Fetching, now: float, sha: str = "aa") -> list[f.Effect]:
    """Answer every AskHashes alike; what follows."""
    found: list[f.Effect] = []
    for effect in effects:
        if isinstance(effect, f.AskHashes):
            found += m.step(f.HashesTold(effect.batch, effect.peer, dict.fromkeys(effect.pieces, sha)), now)
    return found


def test_nothing_wanted_is_finished_at_once() -> None:
    assert machine(["a"], []).step(f.Tick(), 0.0) == [f.Finished()]


def test_peers_are_asked_and_pieces_are_spread_over_them() -> None:
    m = machine(["a", "b", "me"])
    assert m.step(f.Tick(), 0.0) == [f.AskHoldings("a"), f.AskHoldings("b")]
    begun = m.step(f.HoldingsTold("a", frozenset(PIECES)), 0.1)
    fetches = told(begun, m, 0.2)
    # Two streams of 64 MiB would take all of a's: 12 pieces of 8 MiB are a batch of eight and one of four.
    assert [(e.source, len(e.expected)) for e in fetches if isinstance(e, f.Fetch)] == [("a", 8), ("a", 4)]


def test_idle_and_near_nodes_come_first_and_busy_ones_for_what_nobody_else_has() -> None:
    m = machine(
        ["busy", "far", "near"],
        settings=f.FetchSettings(batch_pieces=2, streams_per_peer=1, voters=1, gather_seconds=0),
    )
    m.step(f.Tick(), 0.0)
    every, rest = frozenset(PIECES), frozenset(PIECES[:-1])
    first = m.step(f.HoldingsTold("near", rest, distance=0.1), 0.0)
    second = m.step(f.HoldingsTold("far", rest, distance=5.0), 0.0)
    third = m.step(f.HoldingsTold("busy", every, busy=True), 0.0)
    assert [e.pieces for e in first if isinstance(e, f.AskHashes)] == [PIECES[:2]]
    assert [e.pieces for e in second if isinstance(e, f.AskHashes)] == [PIECES[2:4]]
    assert [e.pieces for e in third if isinstance(e, f.AskHashes)] == [PIECES[-1:]]


def test_who_sends_other_bytes_is_given_up_and_the_piece_comes_from_another() -> None:
    m = machine(["a", "b"], PIECES[:1])
    m.step(f.Tick(), 0.0)
    begun = m.step(f.HoldingsTold("a", frozenset(PIECES[:1])), 0.0)
    [fetch] = only(told(begun, m, 0.0), f.Fetch)
    assert isinstance(fetch, f.Fetch)
    m.step(f.HoldingsTold("b", frozenset(PIECES[:1])), 0.1)
    effects = m.step(f.PieceCorrupt("a", PIECES[0]), 0.2)
    assert [e.peer for e in effects if isinstance(e, f.Quarantine)] == ["a"]
    assert f.Abandon(fetch.batch) in effects
    # The hash is known: b is not asked for it, only for the bytes.
    assert [(e.source, dict(e.expected)) for e in effects if isinstance(e, f.Fetch)] == [
        ("b", {PIECES[0]: "aa"})
    ]
    assert m.step(f.PiecesArrived("b", PIECES[:1]), 0.3)[-1] == f.Finished()


def test_a_minority_that_states_other_hashes_is_given_up_before_it_sends() -> None:
    m = machine(["liar", "x", "y"], PIECES[:2])
    effects = _told_at_once(m, ["liar", "x", "y"])
    voters = [e for e in effects if isinstance(e, f.AskHashes)]
    assert [v.peer for v in voters] == ["liar", "x", "y"]
    out: list[f.Effect] = []
    for vote in voters:
        sha = "ff" if vote.peer == "liar" else "aa"
        out += m.step(f.HashesTold(vote.batch, vote.peer, dict.fromkeys(vote.pieces, sha)), 2.0)
    assert [e.peer for e in out if isinstance(e, f.Quarantine)] == ["liar"]
    fetches = [e for e in out if isinstance(e, f.Fetch)]
    assert {e.source for e in fetches} == {"x"}
    assert {sha for e in fetches for sha in e.expected.values()} == {"aa"}


def _told_at_once(m: f.Fetching, names: list[str]) -> list[f.Effect]:
    """All hold everything before the first may be fetched from: they failed once, and may be retried later."""
    m.step(f.Tick(), 0.0)
    for name in names:
        m.step(f.HoldingsFailed(name, "not yet"), 0.0)
    for name in names:
        m.step(f.HoldingsTold(name, frozenset(PIECES[:2])), 0.01)
    return m.step(f.Tick(), 1.0)


def test_two_that_disagree_are_an_error_that_names_them() -> None:
    m = machine(["aaaa", "bbbb"], PIECES[:2])
    out: list[f.Effect] = []
    for vote in _told_at_once(m, ["aaaa", "bbbb"]):
        if isinstance(vote, f.AskHashes):
            out += m.step(f.HashesTold(vote.batch, vote.peer, dict.fromkeys(vote.pieces, vote.peer)), 2.0)
    [failed] = only(out, f.Failed)
    assert isinstance(failed, f.Failed)
    assert failed.is_content
    assert "aaaa and bbbb" in failed.reason


def test_what_nobody_has_is_an_error_after_a_while() -> None:
    m = machine(["a"])
    m.step(f.Tick(), 0.0)
    m.step(f.HoldingsTold("a", frozenset()), 0.0)
    now = 0.0
    effects: list[f.Effect] = []
    while not only(effects, f.Failed):
        now = m.next_deadline() or pytest.fail("no deadline")
        effects = m.step(f.Tick(), now)
        for effect in list(effects):
            if isinstance(effect, f.AskHoldings):
                effects += m.step(f.HoldingsTold("a", frozenset()), now)
    assert now < 30
    [failed] = only(effects, f.Failed)
    assert isinstance(failed, f.Failed)
    assert "no node has it all" in failed.reason


def test_the_hub_is_asked_by_the_first_that_needs_a_piece_and_by_the_next_when_that_one_is_gone() -> None:
    order = {PIECES[0]: ("me", "a"), PIECES[1]: ("a", "me")}
    m = machine(["a"], PIECES[:2], has_hub=True, hub_order=order.__getitem__)
    assert only(m.step(f.Tick(), 0.0), f.Fetch) == []  # a has not been asked
    effects = m.step(f.HoldingsTold("a", frozenset()), 0.0)
    assert [(e.source, list(e.expected)) for e in effects if isinstance(e, f.Fetch)] == [(f.HUB, [PIECES[0]])]
    now = 0.0
    fetched: list[f.Effect] = []
    for _ in range(3):
        while not only(effects := m.step(f.Tick(), now), f.AskHoldings):
            now = m.next_deadline() or 0.0
        effects = m.step(f.HoldingsFailed("a", "down"), now)
        fetched += only(effects, f.Fetch)
    assert [list(e.expected) for e in fetched if isinstance(e, f.Fetch)] == [[PIECES[1]]]


# Whole clusters.


@dataclass
class Node:
    name: str
    held: set[Piece]
    lies: bool = False
    down_until: float = 0.0
    fetching: f.Fetching | None = None
    outcome: f.Finished | f.Failed | None = None
    quarantined: list[str] = field(default_factory=list)


class World:
    """Nodes that fetch from each other and a hub; every call takes a while and may break off."""

    def __init__(
        self, seed: int, nodes: list[Node], needs: dict[str, tuple[Piece, ...]], *, hub: bool
    ) -> None:
        self.rng = random.Random(seed)  # noqa: S311  the seed of a simulation
        self.now = 0.0
        self.nodes = {node.name: node for node in nodes}
        self.needs = needs
        self.from_hub: list[Piece] = []
        self.sent = 0
        self.breaks = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._count = itertools.count()
        for name, pieces in needs.items():
            node = self.nodes[name]
            node.fetching = f.Fetching(
                wanted=[p for p in pieces if p not in node.held],
                peers=[n for n in self.nodes if n != name],
                node_id=name,
                now=0.0,
                has_hub=hub,
                hub_order=lambda p: [n for n in self.needs if p in self.needs[n]],
            )
            self.later(0.0, partial(self.give, node, f.Tick()))

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._count), what))

    def give(self, node: Node, event: f.Event) -> None:
        assert node.fetching is not None
        for effect in node.fetching.step(event, self.now):
            self.carry_out(node, effect)

    def run(self) -> None:
        ticks: dict[str, float] = {}
        while any(n.fetching and not n.outcome for n in self.nodes.values()):
            for node in self.nodes.values():
                due = node.fetching.next_deadline() if node.fetching else None
                if due is not None and ticks.get(node.name) != due:
                    ticks[node.name] = due
                    self.later(max(0.0, due - self.now), partial(self.give, node, f.Tick()))
            self.now, _, what = heapq.heappop(self._queue)
            assert self.now < 1000, "it never ends"
            what()

    def carry_out(self, node: Node, effect: f.Effect) -> None:
        delay = self.rng.uniform(0.001, 0.2)
        match effect:
            case f.AskHoldings():
                self.later(delay, lambda: self.holdings(node, self.nodes[effect.peer]))
            case f.AskHashes():
                self.later(delay, lambda: self.hashes(node, effect))
            case f.Fetch():
                self.later(delay, lambda: self.transfer(node, effect, list(effect.expected)))
            case f.Quarantine():
                node.quarantined.append(effect.peer)
            case f.Finished() | f.Failed():
                assert node.outcome is None
                node.outcome = effect

    def holdings(self, node: Node, peer: Node) -> None:
        assert node.fetching is not None
        if self.now < peer.down_until:
            self.give(node, f.HoldingsFailed(peer.name, "down"))
        else:
            held = frozenset(node.fetching.missing).intersection(peer.held)
            self.give(node, f.HoldingsTold(peer.name, held, busy=self.rng.random() < 0.2))

    def hashes(self, node: Node, effect: f.AskHashes) -> None:
        peer = self.nodes[effect.peer]
        down = self.now < peer.down_until or self.rng.random() < self.breaks
        said = {} if down else {p: f"{p.begin}" for p in effect.pieces if p in peer.held}
        self.give(node, f.HashesTold(effect.batch, effect.peer, said, "down" if down else ""))

    def transfer(self, node: Node, effect: f.Fetch, left: list[Piece]) -> None:
        if node.outcome:
            return
        if not left:
            self.give(node, f.BatchEnded(effect.batch))
            return
        piece = left.pop(0)
        source = self.nodes.get(effect.source)
        if (source and self.now < source.down_until) or self.rng.random() < self.breaks:
            self.give(node, f.BatchEnded(effect.batch, "broke off"))
            return
        if source is None:
            self.from_hub.append(piece)
        elif source.lies:
            self.give(node, f.PieceCorrupt(source.name, piece))
            return
        else:
            assert piece in source.held
            assert effect.expected[piece] == f"{piece.begin}"
        self.sent += 1
        node.held.add(piece)
        self.give(node, f.PiecesArrived(effect.source, (piece,)))
        self.later(0.01, lambda: self.transfer(node, effect, left))


SUBSETS = st.sets(st.sampled_from(PIECES))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    owned=st.lists(SUBSETS, min_size=2, max_size=4),
    wanted=st.lists(SUBSETS, min_size=1, max_size=3),
    breaks=st.sampled_from([0.0, 0.1]),
)
def test_a_cluster_gets_all_that_any_of_it_holds(
    seed: int, owned: list[set[Piece]], wanted: list[set[Piece]], breaks: float
) -> None:
    nodes = [Node(f"n{i}", set(pieces)) for i, pieces in enumerate(owned)]
    nodes += [Node(f"w{i}", set()) for i in range(len(wanted))]
    needs = {f"w{i}": tuple(sorted(pieces)) for i, pieces in enumerate(wanted)}
    world = World(seed, nodes, needs, hub=False)
    world.breaks = breaks
    world.run()
    there = set().union(*owned)
    for name, pieces in needs.items():
        node = world.nodes[name]
        if set(pieces) <= there:
            assert node.outcome == f.Finished()
        else:
            assert isinstance(node.outcome, f.Failed)
        assert node.held == there.intersection(pieces)
    assert world.sent == sum(len(there.intersection(pieces)) for pieces in wanted), "fetched twice"


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    owned=SUBSETS,
    wanted=st.lists(SUBSETS, min_size=1, max_size=4),
    breaks=st.sampled_from([0.0, 0.1]),
)
def test_a_cluster_downloads_each_piece_from_the_hub_once(
    seed: int, owned: set[Piece], wanted: list[set[Piece]], breaks: float
) -> None:
    nodes = [Node("n0", set(owned)), *(Node(f"w{i}", set()) for i in range(len(wanted)))]
    needs = {f"w{i}": tuple(sorted(pieces)) for i, pieces in enumerate(wanted)}
    world = World(seed, nodes, needs, hub=True)
    world.breaks = breaks
    world.run()
    assert all(world.nodes[name].outcome == f.Finished() for name in needs)
    assert sorted(world.from_hub) == sorted(set().union(*wanted) - owned)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), liars=st.integers(0, 1), down=st.floats(0, 20))
def test_a_liar_and_a_node_that_is_away_keep_nobody_from_the_model(
    seed: int, liars: int, down: float
) -> None:
    nodes = [Node(f"liar{i}", set(PIECES), lies=True) for i in range(liars)]
    nodes += [Node("honest", set(PIECES), down_until=down), Node("me", set())]
    world = World(seed, nodes, {"me": PIECES}, hub=False)
    world.run()
    me = world.nodes["me"]
    # Whoever waits longer than the patience for a piece that nobody usable has is told so.
    assert me.outcome == f.Finished() or (down > 8 and isinstance(me.outcome, f.Failed))
    assert set(me.quarantined) <= {"liar0"}
    assert me.held == set(PIECES) or isinstance(me.outcome, f.Failed)


def test_a_source_that_never_answers_ends_as_a_stall() -> None:
    m = machine(["a"], PIECES[:1])
    m.step(f.Tick(), 0.0)
    m.step(f.HoldingsTold("a", frozenset(PIECES[:1])), 0.0)
    now = 0.0
    effects: list[f.Effect] = []
    while not effects:
        now = m.next_deadline() or pytest.fail("no deadline")
        effects = [e for e in m.step(f.Tick(), now) if isinstance(e, f.Failed | f.Abandon)]
    assert now == f.FetchSettings().stall_seconds
    assert isinstance(effects[-1], f.Failed)
    assert "nothing came for 90 s" in effects[-1].reason
    assert m.next_deadline() is None
    assert m.step(f.Tick(), now + 1) == []


def test_nobody_is_asked_for_hashes_before_all_have_said_what_they_have_or_were_given_the_time() -> None:
    m = machine(["a", "b", "c"], PIECES[:1], settings=f.FetchSettings())
    m.step(f.Tick(), 0.0)
    assert m.step(f.HoldingsTold("a", frozenset(PIECES[:1])), 0.1) == []
    assert m.step(f.HoldingsTold("b", frozenset(PIECES[:1])), 0.2) == []
    assert m.next_deadline() == f.FetchSettings().gather_seconds
    asked = only(m.step(f.Tick(), f.FetchSettings().gather_seconds), f.AskHashes)
    assert [e.peer for e in asked if isinstance(e, f.AskHashes)] == ["a", "b"]
