"""What the demo does, step by step, and when each step was reached."""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import time
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macmesh import ClusterEvent
from macmesh_daemon.demo.errors import LocalDemoSetupError, RemoteDemoNodeError
from macmesh_daemon.demo.fabric import DemoFabric, demo_fabric
from macmesh_daemon.demo.nodes import DemoCluster, NodeSettings
from macmesh_daemon.demo.report import DemoReport
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.models import resolve
from macmesh_daemon.models.demo import demo_model_folder
from macmesh_daemon.models.profiler import profile_model
from macmesh_daemon.models.tokenizer import ModelTokenizer
from macmesh_daemon.supervisor.verify import run_reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from macmesh import AsyncClient, ClusterStatus
    from macmesh_placement import ModelProfile

PROMPT = "A few Macs serve"
#: The worker of the demo model needs no GPU runtime; the rest of the ledger is charged in full.
RUNTIME_RESERVE_BYTES = 64 << 20
PROFILE_DEADLINE_SECONDS = 60.0
REFERENCE_DEADLINE_SECONDS = 120.0
#: Daemons that share the machine with two others take seconds to import; a lost packet costs one beat more.
FORMATION_DEADLINE_SECONDS = 45.0


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What a demo can be asked for.

    Attributes:
        nodes: Daemons to start.
        tokens: Most tokens to generate; the model may end before.
        mdns: Find each other by multicast DNS; otherwise by static seeds.
        prompt: What to continue.
        model_folder: The model; None takes the shipped one.
        context_tokens: Context to serve; 0 takes the model's position limit.
        keep: Leave the folder with logs and state behind.
        timeout_seconds: For the whole demo.
        reference_folder: Folder that the reference reads; None takes the served one.
        transport: What carries the arrays between the stages; "verbs" goes over stand-ins for RDMA devices.
    """

    nodes: int = 3
    tokens: int = 64
    mdns: bool = True
    prompt: str = PROMPT
    model_folder: Path | None = None
    context_tokens: int = 0
    keep: bool = False
    timeout_seconds: float = 170.0
    reference_folder: Path | None = None
    transport: str = "auto"


@dataclass(slots=True)
class Talk:
    """How the scenario tells what happens: `say` for milestones, `show` for tables, `text` for streamed text."""

    say: Callable[[str], None]
    show: Callable[[ClusterStatus], None]
    text: Callable[[str], None]


@dataclass(slots=True)
class _Stopwatch:
    started_at: float
    seconds: dict[str, float] = field(default_factory=dict)

    def reached(self, name: str) -> float:
        self.seconds.setdefault(name, round(time.monotonic() - self.started_at, 3))
        return self.seconds[name]


async def run_demo(options: DemoOptions, talk: Talk) -> DemoReport:
    """Form a cluster, load the model, generate, compare with mlx-lm, and leave nothing running.

    Raises:
        LocalDemoSetupError: it could not be set up.
        RemoteDemoNodeError: a daemon failed or the nodes did not find each other.
        MacmeshError: the cluster refused what the demo asked.
        TimeoutError: the demo took longer than allowed.
    """
    folder = Path(tempfile.mkdtemp(prefix="macmesh-demo-"))
    try:
        async with asyncio.timeout(options.timeout_seconds):
            with demo_fabric(options.transport, options.nodes) as fabric:
                return await _run(options, talk, folder, fabric)
    finally:
        if options.keep:
            talk.say(f"kept: {folder}")
        else:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _run(options: DemoOptions, talk: Talk, folder: Path, fabric: DemoFabric) -> DemoReport:
    model_folder = options.model_folder or demo_model_folder()
    profile = await _profile(model_folder, folder)
    context_tokens = options.context_tokens or profile.position_limit or 0
    reserves = demo_reserves(RUNTIME_RESERVE_BYTES, cables=fabric.cables)
    usable_bytes = await asyncio.to_thread(usable_bytes_for, profile, options.nodes, context_tokens, reserves)
    talk.say(
        f"model: {profile.layer_count} layers of {profile.model_type}, context {context_tokens}; "
        f"each daemon may use {usable_bytes / 1e6:.1f} MB, which needs {options.nodes} nodes"
    )
    settings = NodeSettings(
        usable_bytes=usable_bytes,
        runtime_reserve_bytes=RUNTIME_RESERVE_BYTES,
        bootstrap_expect=options.nodes,
        mdns=options.mdns,
        probe_cache_dir=folder,
        extra={"transport": options.transport},
        environments=fabric.environments,
    )
    async with DemoCluster(folder, options.nodes, settings) as cluster:
        watch = _Stopwatch(time.monotonic())
        await cluster.start()
        talk.say(f"started {options.nodes} daemons: pids {', '.join(str(n.pid) for n in cluster.nodes)}")
        client_node = cluster.nodes[-1]
        async with client_node.client() as client:
            votes = await _form(cluster, client, options, talk, watch)
            await _load(client, model_folder, context_tokens, talk, watch)
            status = await client.status()
            talk.show(status)
            text, token_ids, speed, epoch = await _generate(client, options, talk, watch)
            status = await client.status()
        for node in cluster.nodes:
            node.check()
    return await _compare(
        options, model_folder, status, votes, (text, token_ids, speed, epoch), watch, usable_bytes
    )


async def _profile(model_folder: Path, folder: Path) -> ModelProfile:
    model = await asyncio.to_thread(resolve, str(model_folder), ())
    return await profile_model(model, folder / "profiles", deadline_seconds=PROFILE_DEADLINE_SECONDS)


async def _form(
    cluster: DemoCluster, client: AsyncClient, options: DemoOptions, talk: Talk, watch: _Stopwatch
) -> dict[str, Any]:
    """Wait until every node is an admitted member under one coordinator; returns how it was elected."""
    last: ClusterStatus | None = None
    try:
        async with asyncio.timeout(FORMATION_DEADLINE_SECONDS):
            for node in cluster.nodes:
                await node.ready(FORMATION_DEADLINE_SECONDS)
            async with aclosing(client.watch()) as updates:
                async for update in updates:
                    for node in cluster.nodes:
                        node.check()
                    if isinstance(update, ClusterEvent):
                        continue
                    last = update
                    members = update.document.members
                    if len(members) == options.nodes and "discovered" not in watch.seconds:
                        talk.say(_discovered(update, watch.reached("discovered")))
                    if update.coordinator_node_id and len(members) == options.nodes and update.has_quorum:
                        talk.say(
                            f"elected: {update.coordinator_node_id[:8]} coordinates term {update.term} "
                            f"({watch.reached('elected'):.1f} s)"
                        )
                        return await _votes(cluster)
    except TimeoutError:
        pass
    seen = len(last.document.members) if last is not None else 0
    hint = (
        "multicast seems to be blocked on this machine: `daemonctl demo --no-mdns` uses static seeds instead"
        if options.mdns
        else "their logs say more (--keep)"
    )
    tails = "\n".join(f"-- {n.node_id[:8]}\n{n.log_tail(5)}" for n in cluster.nodes)
    raise RemoteDemoNodeError(
        f"the {options.nodes} daemons did not form a cluster within {FORMATION_DEADLINE_SECONDS:.0f} s "
        f"({seen} members seen); {hint}\n{tails}"
    )


def _discovered(status: ClusterStatus, seconds: float) -> str:
    names = ", ".join(
        f"{m.node_id[:8]} at {m.addresses[0] if m.addresses else '?'}" for m in status.document.members
    )
    return f"discovered by {_discovery(status)}: {names} ({seconds:.1f} s)"


def _discovery(status: ClusterStatus) -> str:
    """How the members were found; the founder found itself."""
    found = {m.discovery for m in status.document.members} - {"", "self"}
    return "+".join(sorted(found)) or "none"


async def _votes(cluster: DemoCluster) -> dict[str, Any]:
    """The winner's own log line of the election."""
    for node in cluster.nodes:
        lines = await asyncio.to_thread(node.log_path.read_text, "utf-8", "replace")
        for line in lines.splitlines():
            if '"coordinator elected"' in line:
                event = json.loads(line)
                return {k: v for k, v in event.items() if k not in {"event", "level", "timestamp", "part"}}
    return {}


async def _load(
    client: AsyncClient, model_folder: Path, context_tokens: int, talk: Talk, watch: _Stopwatch
) -> None:
    async with aclosing(client.iter_load(str(model_folder), context_tokens=context_tokens)) as steps:
        async for step in steps:
            if step.deployment is not None and "planned" not in watch.seconds:
                stages = step.deployment.stages
                shares = ", ".join(
                    f"{s.node_id[:8]} layers {s.first_layer}-{s.end_layer - 1}" for s in stages
                )
                talk.say(f"planned: {len(stages)} stages, {shares} ({watch.reached('planned'):.1f} s)")
            if step.phase == "ready":
                talk.say(f"ready: epoch {step.epoch} ({watch.reached('ready'):.1f} s)")


async def _generate(
    client: AsyncClient, options: DemoOptions, talk: Talk, watch: _Stopwatch
) -> tuple[str, tuple[int, ...], float, str]:
    pieces: list[str] = []
    ids: list[int] = []
    speed, epoch = 0.0, ""
    talk.text(f"{options.prompt}")
    generation = client.generate(options.prompt, max_tokens=options.tokens, temperature=0.0)
    async with aclosing(generation) as chunks:
        async for chunk in chunks:
            if chunk.token_ids:
                watch.reached("first_token")
            if chunk.request is not None:
                epoch = chunk.request.epoch
            pieces.append(chunk.text)
            ids.extend(chunk.token_ids)
            talk.text(chunk.text)
            if chunk.usage is not None:
                speed = chunk.usage.decode_tokens_per_second
    talk.text("\n")
    watch.reached("done")
    return "".join(pieces), tuple(ids), speed, epoch


async def _compare(
    options: DemoOptions,
    model_folder: Path,
    status: ClusterStatus,
    votes: dict[str, Any],
    generated: tuple[str, tuple[int, ...], float, str],
    watch: _Stopwatch,
    usable_bytes: int,
) -> DemoReport:
    text, token_ids, speed, epoch = generated
    tokenizer = await asyncio.to_thread(ModelTokenizer.from_folder, model_folder)
    deployment = status.document.plan.deployments[0]
    reference = await run_reference(
        options.reference_folder or model_folder,
        tokenizer.encode(options.prompt),
        options.tokens,
        prefill_chunk_tokens=deployment.prefill_chunk_tokens,
        deadline_seconds=REFERENCE_DEADLINE_SECONDS,
    )
    if not token_ids:
        raise LocalDemoSetupError("the cluster generated no token")
    # The reference goes on past the model's end; ours must have stopped exactly there, or at the limit.
    expected = cut_at_end(reference.token_ids, tokenizer.eos_token_ids)
    identical = expected == token_ids
    return DemoReport(
        identical=identical,
        nodes=len(status.document.members),
        stages=len(deployment.stages),
        tokens=len(token_ids),
        discovery=_discovery(status),
        coordinator=status.coordinator_node_id,
        epoch=epoch,
        layers=tuple(s.end_layer - s.first_layer for s in deployment.stages),
        prompt=options.prompt,
        text=text,
        token_ids=token_ids,
        reference_token_ids=expected,
        seconds=watch.seconds,
        tokens_per_second=round(speed, 1),
        reference_tokens_per_second=round(reference.decode_tokens_per_second, 1),
        usable_bytes=usable_bytes,
        votes=votes,
        providers=_providers(status, options),
    )


def _providers(status: ClusterStatus, options: DemoOptions) -> tuple[str, ...]:
    """What carried the arrays, as every worker told it."""
    found = tuple(sorted({link.provider for node in status.nodes for link in node.worker.links}))
    if options.transport != "auto" and set(found) - {options.transport}:
        raise RemoteDemoNodeError(
            f"{options.transport} was asked for, and {', '.join(found)} carried the arrays"
        )
    return found


def cut_at_end(token_ids: tuple[int, ...], end_ids: frozenset[int]) -> tuple[int, ...]:
    """The tokens up to the first end-of-sequence token, that one included; all where there is none."""
    for position, token_id in enumerate(token_ids):
        if token_id in end_ids:
            return token_ids[: position + 1]
    return token_ids
