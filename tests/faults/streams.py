"""Streams that flow while a cluster changes, what became of them, and what the change cost."""

from __future__ import annotations

import asyncio
import itertools
import time
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from faults.cluster import eventually, now
from faults.results import LocalOutcomeWrongError
from macmesh_daemon.eventlog.records import Kind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from faults.cluster import Node
    from faults.world import World
    from macmesh import AsyncClient
    from macmesh_daemon.eventlog.records import Record

PROMPT = "A plan is"


class Sampled(TypedDict, total=False):
    """How a stream samples."""

    temperature: float
    top_p: float
    seed: int


#: Greedy, and one that draws random numbers.
SAMPLINGS: dict[str, Sampled] = {
    "greedy": {"temperature": 0.0},
    "seeded": {"temperature": 1.0, "top_p": 0.95, "seed": 20_261_121},
}
STREAM_DEADLINE_SECONDS = 90.0


@dataclass(frozen=True, slots=True)
class Whole:
    """All that a client got."""

    token_ids: tuple[int, ...]
    text: str


@dataclass(slots=True)
class Stream:
    """One generation, and when each of its tokens came.

    Attributes:
        sampling: Of `SAMPLINGS`.
        max_tokens: So many come, unless it fails.
        arrivals: Clock reading of each token, of the event logs' clock.
        pauses: The reasons of the pauses that were told.
    """

    sampling: str
    max_tokens: int
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    arrivals: list[float] = field(default_factory=list)
    pauses: list[str] = field(default_factory=list)

    async def run(self, client: AsyncClient) -> None:
        """Generate to the end."""
        generation = client.generate(
            PROMPT, max_tokens=self.max_tokens, ignore_eos=True, **SAMPLINGS[self.sampling]
        )
        async with aclosing(generation) as chunks:
            async for chunk in chunks:
                if chunk.paused is not None:
                    self.pauses.append(str(chunk.paused.reason))
                self.arrivals.extend(now() for _ in chunk.token_ids)
                self.token_ids += chunk.token_ids
                self.text += chunk.text

    @property
    def whole(self) -> Whole:
        """What came."""
        return Whole(tuple(self.token_ids), self.text)

    def pause_around(self, moment: float) -> tuple[float, float]:
        """The longest wait for a token after a moment: its length, and when it was over."""
        times = [moment, *(t for t in self.arrivals if t > moment)]
        gaps = [(b - a, b) for a, b in itertools.pairwise(times)]
        return max(gaps, default=(0.0, moment))


async def undisturbed(node: Node, max_tokens: int) -> dict[str, Whole]:
    """What the streams are to give, of each sampling."""
    found: dict[str, Whole] = {}
    async with node.client() as client:
        for name in SAMPLINGS:
            stream = Stream(name, max_tokens)
            await stream.run(client)
            found[name] = stream.whole
    return found


@asynccontextmanager
async def flowing(
    client: AsyncClient, max_tokens: int, *, until_token: int = 1
) -> AsyncIterator[dict[str, Stream]]:
    """A stream of each sampling at once, from that token on; when the block is left they run to their end."""
    streams = {name: Stream(name, max_tokens) for name in SAMPLINGS}
    try:
        async with asyncio.timeout(STREAM_DEADLINE_SECONDS), asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(s.run(client), name=f"stream {s.sampling}") for s in streams.values()
            ]

            async def reached() -> bool | None:
                for task in running:
                    if task.done():
                        await task
                        raise LocalOutcomeWrongError("a stream ended before the change")
                return True if all(len(s.token_ids) >= until_token for s in streams.values()) else None

            await eventually(reached, "tokens flow", 30)
            yield streams
    except TimeoutError:
        counts = {name: len(s.token_ids) for name, s in streams.items()}
        raise LocalOutcomeWrongError(
            f"the streams did not end within {STREAM_DEADLINE_SECONDS:g} s: {counts} of {max_tokens} tokens"
        ) from None


def compare(world: World, streams: dict[str, Stream], expected: dict[str, Whole]) -> None:
    """All tokens and all text, as in an undisturbed run."""
    for name, stream in streams.items():
        got, wanted = stream.whole, expected[name]
        first = next(
            (i for i, (a, b) in enumerate(zip(got.token_ids, wanted.token_ids, strict=False)) if a != b), None
        )
        world.holds(
            f"the {name} stream has all tokens and the text of an undisturbed one",
            got == wanted,
            f"{len(got.token_ids)} of {len(wanted.token_ids)} tokens, the first that differs: {first}",
        )


@dataclass(frozen=True, slots=True)
class Serving:
    """Who served what before a change.

    Attributes:
        order: The nodes of the stages, head first.
        pids: Of their workers.
        epoch: Of the plan.
        leader: The coordinator.
    """

    order: tuple[Node, ...]
    pids: dict[str, int]
    epoch: tuple[int, ...]
    leader: Node

    @property
    def head(self) -> Node:
        """Of the first stage."""
        return self.order[0]

    @property
    def tail(self) -> Node:
        """Of the last stage."""
        return self.order[-1]


async def served(world: World) -> Serving:
    """Who serves what now; waits until it is ready everywhere."""
    cluster = world.cluster
    leader = await cluster.formed()
    status = await cluster.serving(leader, 60)
    for node in cluster.everybody:
        if node.pid is not None:
            await cluster.serving(node, 30)
    plan = status.document.plan
    order = tuple(cluster.named(stage.node_id) for stage in plan.deployments[0].stages)
    epoch = (plan.epoch.generation, plan.epoch.term, plan.epoch.seq)
    return Serving(order, {node.node_id: node.worker().pid for node in order}, epoch, leader)


def lose(*nodes: Node) -> float:
    """SIGKILL daemons and their workers, as a loss of power does; when."""
    processes = [process for node in nodes for process in (node.process(), *node.process().children())]
    hurt = now()
    for process in processes:
        process.kill()
    return hurt


def account(
    world: World,
    before: Serving,
    streams: dict[str, Stream],
    hurt: float,
    *,
    target: float | None,
    lost: Sequence[Node] = (),
    needed_epoch: bool = True,
    keeps_processes: bool = True,
) -> None:
    """Measure what the change cost, from the streams and the nodes' event logs.

    Args:
        world: The scenario's.
        before: Who served before.
        streams: They have ended.
        hurt: When the change was made.
        target: Of the whole pause.
        lost: Nodes whose processes ended.
        needed_epoch: Whether another plan is certain.
        keeps_processes: Whether workers that live on take up the next plan.
    """
    pause, resumed = max(stream.pause_around(hurt) for stream in streams.values())
    records = _since(world, hurt)
    ready = _ready(records, before.epoch, resumed)
    if ready is None:
        if needed_epoch:
            raise LocalOutcomeWrongError("no other plan was made ready before the streams went on")
        world.measure("longest wait for a token after it", pause, target=target)
        return
    at, epoch = ready
    committed = _first(records, lambda r: _says(r, "plan committed") and _epoch_of(r) == epoch) or at
    # All that led to this plan began with the news of a loss.
    noticed = _first(records, _is_news, default=committed)
    world.measure("detection: change -> first node that notices", max(0.0, noticed - hurt))
    world.measure("replan: -> plan committed", max(0.0, committed - noticed))
    world.measure("load: -> plan ready", at - committed)
    world.measure("replay: -> next token at the client", max(0.0, resumed - at))
    world.measure("the whole pause of the streams", pause, target=target)
    survivors = [node for node in before.order if node not in lost] if keeps_processes else []
    _weights(world, before, survivors, records, epoch)


def moved(world: World, before: Serving, since: float) -> None:
    """Measure what the newest plan read, beside a full load; the nodes that served before keep their processes."""
    records = _since(world, since)
    *_, epoch = [_epoch_of(record) for _, record in records if _says(record, "plan ready")]
    _weights(world, before, before.order, records, epoch)


def _weights(
    world: World,
    before: Serving,
    survivors: Sequence[Node],
    records: list[tuple[Node, Record]],
    epoch: tuple[int, ...],
) -> None:
    of_epoch = [
        (node, record)
        for node, record in records
        if record.kind in {Kind.WORKER_READY, Kind.WORKER_RUNS} and tuple(record.facts["epoch"]) == epoch
    ]
    loaded = [record.facts for _, record in of_epoch if record.kind == Kind.WORKER_READY]
    kept = sum(int(facts["kept_bytes"]) for facts in loaded)
    read = sum(int(facts["read_bytes"]) for facts in loaded)
    world.measure("weights kept by their processes", kept / 1024, unit="KiB")
    world.measure("weights read", read / 1024, unit="KiB")
    if kept + read:
        world.measure("of what a full load reads", 100 * read / (kept + read), unit="%")
    changed = {
        node.name: record.facts
        for node, record in of_epoch
        if record.kind == Kind.WORKER_RUNS
        and node in survivors
        and record.facts["pid"] != before.pids[node.node_id]
    }
    if survivors:
        world.holds("the workers that survive keep their process ids", not changed, changed)


def _since(world: World, hurt: float) -> list[tuple[Node, Record]]:
    found = [
        (node, record) for node in world.cluster.everybody for record in node.records() if record.mono >= hurt
    ]
    return sorted(found, key=lambda pair: pair[1].mono)


def _ready(
    records: list[tuple[Node, Record]], before: tuple[int, ...], resumed: float
) -> tuple[float, tuple[int, ...]] | None:
    """The last plan that became ready before the streams went on."""
    found = [
        (record.mono, epoch)
        for _, record in records
        if _says(record, "plan ready") and (epoch := _epoch_of(record)) != before and record.mono <= resumed
    ]
    return found[-1] if found else None


def _first(
    records: list[tuple[Node, Record]], condition: Callable[[Record], bool], default: float = 0.0
) -> float:
    return next((record.mono for _, record in records if condition(record)), default)


def _says(record: Record, event: str) -> bool:
    return record.kind == Kind.ANNOUNCED and record.facts.get("event") == event


def _epoch_of(record: Record) -> tuple[int, ...]:
    text = str((record.facts.get("facts") or {}).get("epoch", ""))
    return tuple(int(part) for part in text.split(".") if part.isdigit())


_NEWS = (
    "member suspect",
    "member dead",
    "member cut",
    "member restarted",
    "member leaves",
    "coordinator lost",
)


def _is_news(record: Record) -> bool:
    return record.kind in {Kind.WORKER_FAILED, Kind.RUN_LOST} or any(_says(record, event) for event in _NEWS)


async def waited(seconds: float) -> None:
    """Let a change take place among streams that have to flow on meanwhile."""
    until = time.monotonic() + seconds

    async def over() -> bool | None:
        return True if time.monotonic() >= until else None

    await eventually(over, "the time is over", seconds + 5)
