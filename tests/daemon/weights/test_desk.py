"""Bringing a stage's weights here: from fake nodes in memory that break off, lie or are away, and from a hub."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from macmesh_daemon.clock import SystemClock
from macmesh_daemon.cluster.messages import Deployment, FetchProgress, ModelRef, Stage
from macmesh_daemon.models import LocalModelNotFoundError
from macmesh_daemon.models.fake_hub import FakeHub
from macmesh_daemon.models.folder import ModelFolder, read_folder
from macmesh_daemon.models.profiler import map_tensors
from macmesh_daemon.node.weights_desk import WeightsDesk
from macmesh_daemon.weights import store as store_module
from macmesh_daemon.weights.errors import (
    LocalModelUnknownError,
    LocalRangeError,
    LocalWeightsError,
    RemoteContentDiffersError,
    RemoteNoSourceError,
    RemoteSourceBusyError,
)
from macmesh_daemon.weights.hub_source import HubSource
from macmesh_daemon.weights.library import Library
from macmesh_daemon.weights.partial import PartialModel, require_held
from macmesh_daemon.weights.pieces import Piece, pieces_of
from macmesh_daemon.weights.serving import STREAMS_PER_PEER, ServingLimits, TokenBucket
from macmesh_daemon.weights.store import ModelStore
from macmesh_daemon.weights.testing import FakePeer, FakePeers
from support.mesh import demo_profile_cache
from support.models import change_one_layer, copy_model

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from macmesh_daemon.weights.tensor_map import TensorMap

HUB_NAME = "someone/tiny"


def nowhere(model_id: str, _path: str, _digest: str) -> Path:
    raise LocalModelNotFoundError(f"no model folder {model_id!r} on this node")


@dataclass
class Here:
    """This node: a desk with a store of its own, and what it was told."""

    desk: WeightsDesk
    library: Library
    peers: FakePeers
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    told: list[FetchProgress] = field(default_factory=list)

    async def provide(self, deployment: Deployment, index: int) -> Path:
        return await self.desk.provide(deployment, index, self.told.append)

    def partial(self, digest: str) -> PartialModel:
        partial = self.library.store.open(digest)
        assert partial is not None
        return partial


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.peers: dict[str, FakePeer] = {}
        self.model = read_folder(copy_model(folder / "original"))

    async def tensors(self) -> TensorMap:
        return await map_tensors(self.model, demo_profile_cache(), deadline_seconds=120)

    def library(self, name: str, *, folder: Path | None = None) -> Library:
        top = self.folder / name
        if folder is not None:
            shutil.copytree(folder, top / "models" / "tiny")
        return Library(ModelStore(top / "store"), lambda: [top / "models"], top / "hashes")

    def holder(self, name: str, folder: Path | None = None) -> FakePeer:
        peer = self.peers[name] = FakePeer(self.library(name, folder=folder or self.model.path))
        return peer

    def here(self, name: str = "here", endpoint: str = "http://127.0.0.1:9") -> Here:
        library = self.library(name)
        peers = FakePeers({n: p for n, p in self.peers.items() if n != name})
        events: list[tuple[str, dict[str, object]]] = []
        desk = WeightsDesk(
            node_id=name,
            library=library,
            resolve_path=nowhere,
            peers=peers,
            members=lambda: tuple(peers.nodes),
            hub=HubSource(endpoint),
            cache_dir=demo_profile_cache(),
            clock=SystemClock(),
            announce=lambda event, facts: events.append((event, facts)),
        )
        return Here(desk, library, peers, events)

    def deployment(self, *stages: tuple[str, int, int], hub_commit: str = "") -> Deployment:
        ref = ModelRef(model_id=HUB_NAME, digest=self.model.digest, hub_commit=hub_commit)
        return Deployment(
            model=ref,
            stages=tuple(
                Stage(index=i, node_id=n, first_layer=first, end_layer=end)
                for i, (n, first, end) in enumerate(stages)
            ),
        )

    async def needed(self, first: int, end: int) -> dict[Piece, str]:
        tensors = await self.tensors()
        return pieces_of(self.model.tensors, tensors.needed(first, end))

    async def check(self, path: Path, first: int, end: int) -> None:
        """The folder has the stage's bytes, and they are those of the model."""
        tensors = await self.tensors()
        folder = read_folder(path)
        assert folder.digest == self.model.digest
        require_held(path, folder.tensors, tensors.needed(first, end))
        for piece in await self.needed(first, end):
            theirs = (path / piece.file).read_bytes()[piece.begin : piece.end]
            assert theirs == (self.model.path / piece.file).read_bytes()[piece.begin : piece.end]
        for name in ("config.json", "tokenizer.json"):
            assert (path / name).read_bytes() == (self.model.path / name).read_bytes()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_an_interrupted_fetch_goes_on_where_it_was(world: World) -> None:
    peer = world.holder("holder")
    deployment = world.deployment(("here", 0, 6), ("holder", 6, 12))
    needed = await world.needed(0, 6)
    peer.breaks_after = len(needed) // 2 + len(list(world.model.path.iterdir()))
    here = world.here()

    # The node is started anew when a half is there.
    task = asyncio.create_task(here.provide(deployment, 0))
    async with asyncio.timeout(60):
        await peer.broke.wait()
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    held = PartialModel(here.library.store.folder / world.model.digest).held_bytes
    assert 0 < held < sum(piece.size_bytes for piece in needed)

    peer.breaks_after = -1
    again = world.here()
    await world.check(await again.provide(deployment, 0), 0, 6)
    assert {peer.sent[piece] for piece in needed} == {1}, "fetched twice"
    assert again.told[0].disk_bytes == held
    last = again.told[-1]
    assert last.disk_bytes + last.peer_bytes == last.total_bytes == sum(p.size_bytes for p in needed)
    assert last.source_node_ids == ("holder",)
    # All is there: nobody is asked, nothing is told.
    again.told.clear()
    peer.is_down = True
    assert await again.provide(deployment, 0)
    assert again.told == []


async def test_streams_that_break_off_are_taken_up_again_elsewhere(world: World) -> None:
    weak, strong = world.holder("weak"), world.holder("strong")
    weak.breaks_after = 20
    here = world.here()
    await world.check(await here.provide(world.deployment(("here", 3, 9)), 0), 3, 9)
    needed = await world.needed(3, 9)
    assert all(weak.sent[piece] + strong.sent[piece] == 1 for piece in needed)
    assert here.desk.health() == ()


async def test_spoilt_pieces_come_from_another_and_their_sender_is_given_up(world: World) -> None:
    spoiler = world.holder("aspoiler")
    world.holder("bhonest")
    here = world.here()
    deployment = world.deployment(("here", 0, 4))
    # Its small files and headers are spoilt too: they come from the other as well.
    spoiler.spoils = True
    await world.check(await here.provide(deployment, 0), 0, 4)
    given_up = [facts for event, facts in here.events if event == "weights source quarantined"]
    assert [facts["node_id"] for facts in given_up] == ["aspoiler"]
    assert "aspoiler"[:8] in here.desk.health()[0]
    sent = spoiler.sent.total()
    # The rest of the model is fetched without it.
    await world.check(await here.provide(world.deployment(("here", 0, 12)), 0), 0, 12)
    assert spoiler.sent.total() == sent


async def test_a_lying_node_is_given_up_where_two_others_agree(world: World) -> None:
    for name in ("bone", "ctwo"):
        world.holder(name)
    tampered = copy_model(world.folder / "tampered")
    change_one_layer(tampered, layer=2)
    world.holder("aliar", tampered)
    here = world.here()
    await world.check(await here.provide(world.deployment(("here", 2, 3)), 0), 2, 3)
    assert [facts["node_id"] for e, facts in here.events if "quarantined" in e] == ["aliar"]
    assert world.peers["aliar"].sent.total() == 0, "it was fetched from before it was asked for hashes"


async def test_two_models_of_one_layout_are_told_apart(world: World) -> None:
    world.holder("one")
    tampered = copy_model(world.folder / "tampered")
    change_one_layer(tampered, layer=2)
    world.holder("two", tampered)
    here = world.here()
    with pytest.raises(RemoteContentDiffersError, match=r"nodes one and two have models of the same layout"):
        await here.provide(world.deployment(("here", 2, 3)), 0)
    # What is the same in both is no reason.
    await world.check(await here.provide(world.deployment(("here", 3, 4)), 0), 3, 4)


async def test_what_nobody_has_is_told_with_who_was_asked(world: World) -> None:
    world.holder("away").is_down = True
    world.peers["empty"] = FakePeer(world.library("empty"))
    here = world.here()
    deployment = world.deployment(("here", 0, 4))
    with pytest.raises(RemoteNoSourceError, match=r"node away does not answer.*node empty does not have it"):
        await here.provide(deployment, 0)
    assert deployment.model is not None
    text = await here.desk.obstacle(deployment.model, 1000)
    assert "no other node gives it" in text
    world.holder("holder")
    there = world.here("there")
    assert await there.desk.obstacle(deployment.model, 1000) == ""


async def test_no_room_is_an_obstacle_with_the_figures(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.holder("holder")
    here = world.here()
    deployment = world.deployment(("here", 0, 4))
    assert deployment.model is not None
    assert "10000000000000000 bytes" in await here.desk.obstacle(deployment.model, 10**16)
    monkeypatch.setattr(store_module, "KEPT_FREE_BYTES", 10**18)
    with pytest.raises(LocalWeightsError, match="stay free"):
        await here.provide(deployment, 0)


@pytest.fixture
def hub(world: World) -> Iterator[FakeHub]:
    with FakeHub({HUB_NAME: world.model.path}).running() as fake:
        yield fake


def tensor_bytes_served(hub: FakeHub, model: ModelFolder) -> int:
    """Bytes of tensors that the hub has sent: of ranges that begin behind the header."""
    heads = {tensor.file: 10**12 for tensor in model.tensors.values()}
    for tensor in model.tensors.values():
        heads[tensor.file] = min(heads[tensor.file], tensor.begin)
    found = 0
    for answer in hub.served:
        file = answer.path.rpartition("/")[2]
        if file in heads and answer.range:
            begin = int(answer.range.removeprefix("bytes=").partition("-")[0])
            found += answer.body_bytes if begin >= heads[file] else 0
    return found


async def test_a_cluster_downloads_a_model_once(world: World, hub: FakeHub) -> None:
    first, second = world.here("first", hub.endpoint), world.here("second", hub.endpoint)
    first.peers.nodes["second"] = FakePeer(second.library)
    second.peers.nodes["first"] = FakePeer(first.library)
    deployment = world.deployment(("first", 0, 7), ("second", 7, 12), hub_commit=hub.commit(HUB_NAME))
    paths = await asyncio.gather(first.provide(deployment, 0), second.provide(deployment, 1))
    await world.check(paths[0], 0, 7)
    await world.check(paths[1], 7, 12)
    everything = await world.needed(0, 12)
    assert tensor_bytes_served(hub, world.model) == sum(piece.size_bytes for piece in everything)
    assert first.told[-1].hub_bytes == first.told[-1].total_bytes
    both = set(await world.needed(0, 7)) & set(await world.needed(7, 12))
    assert second.told[-1].peer_bytes == sum(piece.size_bytes for piece in both)


async def test_a_file_that_is_not_what_the_hub_says_is_fetched_again(world: World, hub: FakeHub) -> None:
    here = world.here("here", hub.endpoint)
    deployment = world.deployment(("here", 0, 12), hub_commit=hub.commit(HUB_NAME))
    assert deployment.model is not None
    folder = await here.desk.small_files(deployment.model)
    about = folder / "macmesh-weights.json"
    right = about.read_text()
    stated = here.partial(world.model.digest).about.hub_sha256
    assert set(stated) == set(world.model.weight_files)
    file = min(stated)
    about.write_text(right.replace(stated[file], "0" * 64))
    spoilt = world.here("here", hub.endpoint)
    with pytest.raises(RemoteContentDiffersError, match=f"{file} of {HUB_NAME} is not what the hub says"):
        await spoilt.provide(deployment, 0)
    gone = spoilt.partial(world.model.digest).missing(world.model.tensors, world.model.tensors)
    assert {piece.file for piece in gone} == {file}
    about.write_text(right)
    again = world.here("here", hub.endpoint)
    await world.check(await again.provide(deployment, 0), 0, 12)


async def test_another_commit_with_other_headers_is_refused(world: World, hub: FakeHub) -> None:
    here = world.here("here", hub.endpoint)
    ref = ModelRef(model_id=HUB_NAME, digest="0" * 64, hub_commit=hub.commit(HUB_NAME))
    with pytest.raises(RemoteContentDiffersError, match="not of 000000000000"):
        await here.desk.small_files(ref)
    assert here.library.store.digests() == []


def test_the_library_serves_by_digest_and_only_what_it_holds(world: World) -> None:
    library = world.library("holder", folder=world.model.path)
    digest = world.model.digest
    served = library.folder(digest)
    assert served is not None
    assert {e.name for e in library.manifest(digest).files if e.head_bytes} == set(world.model.weight_files)
    piece = next(iter(pieces_of(world.model.tensors, world.model.tensors)))
    first = library.hash_of(digest, piece)
    library.save()
    # Kept by size and time: of a file that has changed it is computed anew.
    again = world.library("holder")
    assert again.hash_of(digest, piece) == first
    path = served.path / piece.file
    content = bytearray(path.read_bytes())
    content[piece.begin] ^= 1
    path.write_bytes(content)
    assert again.hash_of(digest, piece) != first
    for bad in (Piece("../config.json", 0, 2), Piece(piece.file, 0, 1 << 40), Piece(piece.file, 9, 9)):
        with pytest.raises(LocalRangeError):
            library.read(digest, bad, 0, 10)
    (served.path / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(LocalModelUnknownError):
        library.manifest(digest)
    library.offer(world.model)
    assert library.folder(digest) is not None


async def test_serving_is_slowed_down_while_requests_run_and_bounded_in_number() -> None:
    class Watch(SystemClock):
        slept = 0.0

        def now(self) -> float:
            return self.slept

        async def sleep(self, seconds: float) -> None:
            self.slept += seconds

    busy = [False]
    clock = Watch()
    limits = ServingLimits(1000, lambda: busy[0], clock)
    for _ in range(10):
        await limits.pace(1000)
    assert clock.slept == 0
    busy[0] = True
    for _ in range(10):
        await limits.pace(1000)
    assert clock.slept == pytest.approx(9.75)  # a quarter of a second's worth was saved up
    with pytest.raises(RemoteSourceBusyError):
        _held_open(limits)
    with limits.stream("x"):
        pass


def _held_open(limits: ServingLimits) -> None:
    with ExitStack() as stack:
        for _ in range(STREAMS_PER_PEER + 1):
            stack.enter_context(limits.stream("x"))


def test_a_token_bucket_keeps_its_rate() -> None:
    bucket = TokenBucket(100.0, 0.0)
    now = 0.0
    for _ in range(50):
        now += bucket.take(20, now)
    assert now == pytest.approx((50 * 20 - 25) / 100)
