"""Many changes in a row under streams: ``python -m faults.soak --changes 50 --seed 1``.

Five daemons on loopback, three of which hold stages, and six clients that generate one stream after the other over
mutual TLS. The changes are drawn from the seed; a majority always lives. Every stream must give the tokens of an
undisturbed one; what the daemons hold at the end is compared with what they held at the beginning.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import statistics
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from faults.cluster import Cluster, eventually, now
from faults.results import LocalOutcomeWrongError
from faults.streams import SAMPLINGS, Stream, Whole, lose, undisturbed, waited
from macmesh import AsyncClient, MacmeshError
from support.clients import issue_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from faults.cluster import Node
    from macmesh import ClusterStatus

NODES, STAGES, STREAMS, TOKENS = 5, 3, 6, 120
#: A stream that gets neither a token nor its end for so long hangs: a request that waits in vain fails after 120 s.
SILENCE_SECONDS = 130.0
CALM_DEADLINE_SECONDS = 90.0
STEP_DEADLINE_SECONDS = 2.0


@dataclass(slots=True)
class Tally:
    """What came of it.

    Attributes:
        streams: That ended with all their tokens.
        tokens: That came in these.
        wrong: Streams with tokens lost, doubled or changed; what was wrong.
        hung: Streams that got nothing any more, not even an error.
        failed: Streams that ended with an error: the reasons.
        pauses: The longest wait of each stream.
        changes: How often each was made.
        calm: From each change until the model was served and every node alive again.
    """

    streams: int = 0
    tokens: int = 0
    wrong: list[str] = field(default_factory=list)
    hung: int = 0
    failed: list[str] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    calm: dict[str, list[float]] = field(default_factory=dict)


class Soak:
    """A cluster, its clients and its changes."""

    def __init__(self, cluster: Cluster, rng: random.Random) -> None:
        self._cluster = cluster
        self._rng = rng
        self._expected: dict[str, Whole] = {}
        self.tally = Tally()
        self._over = False
        #: Of each client, the newest.
        self._running: dict[int, Stream] = {}
        self.held: list[dict[str, tuple[float, int]]] = []

    async def run(self, changes: int) -> None:
        """Make so many changes among streams; leaves when the last stream has ended."""
        await self._cluster.prepare(NODES, stages=STAGES, step_deadline_seconds=STEP_DEADLINE_SECONDS)
        await self._cluster.start()
        await self._cluster.load(await self._cluster.formed())
        await self._calm()
        self._expected = await undisturbed(self._cluster.nodes[0], TOKENS)
        founder, addresses = self._cluster.nodes[0], [node.address for node in self._cluster.nodes]
        async with asyncio.TaskGroup() as tasks:
            for index in range(STREAMS):
                order = addresses[index % NODES :] + addresses[: index % NODES]
                credentials = await issue_client(founder.socket_path, "user", order)
                name = list(SAMPLINGS)[index % len(SAMPLINGS)]
                client = AsyncClient(credentials=credentials)
                tasks.create_task(self._streams(index, client, name), name=f"client {index}")
            try:
                await waited(5.0)
                self.held.append(self._holdings())
                for number in range(changes):
                    await self._change(number, changes)
                await waited(5.0)
                self.held.append(self._holdings())
            finally:
                self._over = True

    async def _streams(self, number: int, client: AsyncClient, sampling: str) -> None:
        async with client:
            while not self._over:
                stream = self._running[number] = Stream(sampling, TOKENS)
                began = now()
                try:
                    if not await self._ends(stream, client):
                        self.tally.hung += 1
                        continue
                except MacmeshError as error:
                    self.tally.failed.append(f"{error.reason}: {error}")
                    continue
                if stream.whole != self._expected[sampling]:
                    self.tally.wrong.append(f"{sampling}: {len(stream.token_ids)} tokens for {TOKENS}")
                self.tally.streams += 1
                self.tally.tokens += len(stream.token_ids)
                self.tally.pauses.append(stream.pause_around(began)[0])

    @staticmethod
    async def _ends(stream: Stream, client: AsyncClient) -> bool:
        """Run a stream to its end; False where it hangs."""
        task = asyncio.create_task(stream.run(client), name=f"stream {stream.sampling}")
        try:
            while True:
                count = len(stream.arrivals)
                done, _ = await asyncio.wait({task}, timeout=SILENCE_SECONDS)
                if done:
                    await task
                    return True
                if len(stream.arrivals) == count:
                    return False
        finally:
            task.cancel()

    async def _change(self, number: int, changes: int) -> None:
        kinds: dict[str, Callable[[], Awaitable[None]]] = {
            "worker killed": self._worker_killed,
            "worker frozen": self._worker_frozen,
            "stage killed": self._stage_killed,
            "coordinator killed": self._coordinator_killed,
            "two killed": self._two_killed,
            "free node restarted": self._free_restarted,
            "stage drained": self._stage_drained,
        }
        kind = self._rng.choice(list(kinds))
        await waited(self._rng.uniform(0.0, 2.0))
        began = now()
        await kinds[kind]()
        await self._calm()
        await self._flowing()
        self.tally.changes[kind] += 1
        self.tally.calm.setdefault(kind, []).append(now() - began)
        sys.stderr.write(
            f"{number + 1}/{changes} {kind}: calm after {now() - began:.1f} s; {self.tally.streams} streams\n"
        )

    async def _calm(self) -> ClusterStatus:
        """Every node alive, and the model served."""
        leader = await self._cluster.formed(CALM_DEADLINE_SECONDS)
        return await self._cluster.serving(leader, CALM_DEADLINE_SECONDS)

    async def _flowing(self) -> None:
        """Every stream goes on: a request under which four plans end without a token is rightly given up."""
        since, running = now(), dict(self._running)

        async def moved() -> bool | None:
            still = [stream for number, stream in running.items() if self._running[number] is stream]
            waiting = [s for s in still if not s.arrivals or s.arrivals[-1] < since]
            return None if waiting else True

        await eventually(moved, "every stream has a token again", CALM_DEADLINE_SECONDS)

    async def _roles(self) -> tuple[Node, list[Node], list[Node]]:
        """The coordinator, those that hold stages, and those that hold none."""
        status = await self._calm()
        order = [self._cluster.named(s.node_id) for s in status.document.plan.deployments[0].stages]
        leader = self._cluster.named(status.coordinator_node_id)
        return leader, order, [node for node in self._cluster.nodes if node not in order]

    async def _lose(self, *victims: Node) -> None:
        lose(*victims)
        await waited(self._rng.uniform(0.0, 6.0))
        for victim in victims:
            await victim.wait(5)
        await self._cluster.start(victims)

    async def _worker_killed(self) -> None:
        await self._worker_lost(signal.SIGKILL)

    async def _worker_frozen(self) -> None:
        await self._worker_lost(signal.SIGSTOP)

    async def _worker_lost(self, number: signal.Signals) -> None:
        leader, order, _ = await self._roles()
        victim = self._rng.choice(order)
        worker = victim.worker()
        before = (await self._calm()).document.plan.epoch
        worker.send_signal(number)

        async def noticed() -> bool | None:
            status = await leader.status()
            return True if status is not None and status.document.plan.epoch != before else None

        await eventually(noticed, "a plan in place of the one whose worker was lost", CALM_DEADLINE_SECONDS)

    async def _stage_killed(self) -> None:
        _, order, _ = await self._roles()
        await self._lose(self._rng.choice(order))

    async def _coordinator_killed(self) -> None:
        leader, _, _ = await self._roles()
        await self._lose(leader)

    async def _two_killed(self) -> None:
        await self._lose(*self._rng.sample(self._cluster.nodes, 2))

    async def _free_restarted(self) -> None:
        _, _, free = await self._roles()
        victim = self._rng.choice(free)
        await victim.stop()
        await victim.up()

    async def _stage_drained(self) -> None:
        leader, order, _ = await self._roles()
        victim = self._rng.choice(order)
        async with leader.client() as client:
            await client.drain(victim.node_id)

            async def drained() -> bool | None:
                nodes = {node.member.node_id: node for node in (await client.status()).nodes}
                return True if nodes[victim.node_id].drain == "drained" else None

            await eventually(drained, "the node is drained", CALM_DEADLINE_SECONDS)
            await client.drain(victim.node_id, undo=True)

    def _holdings(self) -> dict[str, tuple[float, int]]:
        """Of each node, MiB and descriptors of the daemon and its worker."""
        found = {}
        for node in self._cluster.nodes:
            processes = [node.process(), *node.process().children()]
            found[node.name] = (
                sum(p.memory_info().rss for p in processes) / 2**20,
                sum(p.num_fds() for p in processes),
            )
        return found


def told(soak: Soak, checker: str) -> str:
    """The table."""
    tally = soak.tally
    rows = [
        ("streams", str(tally.streams)),
        ("tokens", str(tally.tokens)),
        ("streams with tokens lost, doubled or changed", str(len(tally.wrong))),
        ("streams that hung", str(tally.hung)),
        ("streams that failed", str(len(tally.failed))),
        ("longest wait of a stream, median", f"{statistics.median(tally.pauses or [0.0]):.2f} s"),
        ("longest wait of a stream, longest", f"{max(tally.pauses, default=0.0):.2f} s"),
        ("checker", checker),
    ]
    rows += [
        (f"{kind}: until calm, median of {count}", f"{statistics.median(tally.calm[kind]):.1f} s")
        for kind, count in sorted(tally.changes.items())
    ]
    for name in sorted(soak.held[0]) if len(soak.held) > 1 else ():
        (before, fds), (after, fds_after) = soak.held[0][name], soak.held[-1][name]
        rows.append((f"{name}: memory", f"{before:.0f} -> {after:.0f} MiB"))
        rows.append((f"{name}: descriptors", f"{fds} -> {fds_after}"))
    return "\n".join(f"{what.ljust(52)}{value}" for what, value in rows)


async def soak(changes: int, seed: int) -> int:
    """Run, print, and say whether all went well."""
    folder = Path(tempfile.mkdtemp(prefix="mm-s-", dir="/tmp"))
    cluster = Cluster(folder / "c")
    running = Soak(cluster, random.Random(seed))  # noqa: S311  a seeded choice of changes
    checker = "not run"
    broken = ""
    try:
        try:
            await running.run(changes)
            checker = await asyncio.to_thread(cluster.checked)
        except* (LocalOutcomeWrongError, MacmeshError, psutil.Error) as errors:
            broken = "; ".join(str(error) for error in errors.exceptions)
        sys.stdout.write(f"{told(running, checker)}\n")
        tally = running.tally
        wrong = [
            *tally.wrong,
            *tally.failed,
            *(["a stream hung"] * tally.hung),
            *([broken] if broken else []),
        ]
        for line in wrong:
            sys.stdout.write(f"WRONG: {line}\n")
        return int(bool(wrong))
    finally:
        await cluster.stop()
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


def main() -> int:
    """Run; 1 where something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m faults.soak", description=__doc__)
    parser.add_argument("--changes", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    return asyncio.run(soak(arguments.changes, arguments.seed))


if __name__ == "__main__":
    sys.exit(main())
