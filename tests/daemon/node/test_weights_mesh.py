"""Real nodes over real sockets, of which one has the model's files: the others fetch what their stages read."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from macmesh import MacmeshError
from macmesh.reasons import Reason
from macmesh.types import epoch_text
from macmesh_daemon.demo.sizing import demo_reserves, usable_bytes_for
from macmesh_daemon.eventlog import Kind
from macmesh_daemon.eventlog.reader import read_logs
from macmesh_daemon.identity import load_credentials
from macmesh_daemon.models import LocalModelNotFoundError, folder, resolve
from macmesh_daemon.models.fake_hub import FakeHub
from macmesh_daemon.models.folder import read_folder
from macmesh_daemon.models.profiler import map_tensors
from macmesh_daemon.node import model_finder, runtime
from macmesh_daemon.node.live_credentials import LiveCredentials
from macmesh_daemon.node.peers import PeerPool
from macmesh_daemon.node.runtime import cluster_settings
from macmesh_daemon.node.weights_client import GrpcWeights
from macmesh_daemon.weights.errors import RemoteSourceFailedError
from macmesh_daemon.weights.partial import PartialModel, require_held
from macmesh_daemon.weights.pieces import Piece
from macmesh_daemon.weights.store import ModelStore
from support.mesh import RESERVE_BYTES, Mesh, MeshNode, demo_profile_cache, profile_demo_model
from support.models import copy_model

if TYPE_CHECKING:
    from collections.abc import Iterable

    from macmesh_daemon.cluster.settings import ClusterSettings
    from macmesh_daemon.config import Config
    from macmesh_daemon.models import ModelFolder
    from macmesh_daemon.weights.tensor_map import TensorMap

NAME = "tiny"


@pytest.fixture(autouse=True)
def machines_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """On one machine every node would find the others' folders by their paths."""

    def own(model_id: str, search_folders: Iterable[Path], **other: Any) -> ModelFolder:
        folders = list(search_folders)
        if Path(model_id).is_absolute() and not any(Path(model_id).is_relative_to(f) for f in folders):
            raise LocalModelNotFoundError(f"there is no model folder {model_id}")
        return folder.resolve(model_id, folders, **other)

    monkeypatch.setattr(model_finder, "resolve", own)
    assert resolve is folder.resolve


async def tensors_of(model: ModelFolder) -> TensorMap:
    return await map_tensors(model, demo_profile_cache(), deadline_seconds=120)


class WeightsMesh(Mesh):
    """A mesh of which some nodes have the demo model under a name."""

    def __init__(self, folder: Path, count: int, *, holders: Iterable[int], **settings: object) -> None:
        super().__init__(folder, count, **settings)
        for index, node in enumerate(self.nodes):
            models = node.config.data_dir.parent / f"models{index}"
            node.config = replace(node.config, models_folders=(models,))
            if index in holders:
                copy_model(models / NAME)

    async def __aenter__(self) -> Any:
        await tensors_of(read_folder(next(iter(self.whole()))))
        return await super().__aenter__()

    #: The model where no node has it.
    source: Path | None = None

    def whole(self) -> list[Path]:
        """The folders of the whole model."""
        if self.source is not None:
            return [self.source]
        return [f / NAME for n in self.nodes for f in n.config.models_folders if (f / NAME).exists()]

    def partial(self, node: MeshNode) -> PartialModel | None:
        """What a node has fetched."""
        [digest] = {read_folder(path).digest for path in self.whole()}
        return ModelStore(node.config.resolved_weights_folder()).open(digest)


async def check_stages(mesh: WeightsMesh, status: Any) -> int:
    """Each node's partial model holds the tensors of its stage and not a byte more; how many nodes fetched."""
    model = read_folder(mesh.whole()[0])
    tensors = await tensors_of(model)
    fetched = 0
    for stage in status.document.plan.deployments[0].stages:
        node = next(n for n in mesh.nodes if n.node_id == stage.node_id)
        partial = mesh.partial(node)
        if partial is None:
            continue
        fetched += 1
        names = tensors.needed(stage.first_layer, stage.end_layer)
        require_held(partial.folder, model.tensors, names)
        assert partial.held_bytes == sum(model.tensors[name].size_bytes for name in names)
        for name in names:
            info = model.tensors[name]
            theirs = (partial.folder / info.file).read_bytes()[info.begin : info.end]
            assert theirs == (model.path / info.file).read_bytes()[info.begin : info.end]
    return fetched


async def test_nodes_without_the_files_fetch_the_tensors_of_their_stages(tmp_path: Path) -> None:
    async with WeightsMesh(tmp_path, 3, holders=[1]) as mesh:
        await mesh.formed()
        without = mesh.nodes[0]
        async with without.client() as client:
            progress = await client.load(NAME, context_tokens=256, stage_count=3)
            assert progress.phase == "ready"
            done = await client.complete("A plan is", max_tokens=3)
            assert len(done.token_ids) == 3
        status = await without.status()
        assert await check_stages(mesh, status) == 2
        holder = mesh.nodes[1]
        assert mesh.partial(holder) is None
        paths = {n.workers[0].started_with.model_path for n in mesh.nodes if n.workers[0].started_with}
        assert str(mesh.whole()[0].resolve()) in paths
        assert len(paths) == 3


async def test_a_model_that_nobody_has_is_refused_as_before(tmp_path: Path) -> None:
    async with WeightsMesh(tmp_path, 2, holders=[1]) as mesh:
        await mesh.formed()
        async with mesh.nodes[0].client() as client:
            with pytest.raises(MacmeshError) as refused:
                await client.load("another", context_tokens=256)
        assert refused.value.reason == Reason.MODEL_NOT_FOUND


async def test_a_second_load_and_a_new_split_fetch_only_what_is_missing(tmp_path: Path) -> None:
    async with WeightsMesh(tmp_path, 2, holders=[0]) as mesh:
        await mesh.formed()
        other = mesh.nodes[1]
        async with other.client() as client:
            await client.load(NAME, context_tokens=256, stage_count=2)
            partial = mesh.partial(other)
            assert partial is not None
            first = partial.held_bytes
            journal = (partial.folder / "macmesh-weights.journal").read_bytes()
            await client.unload()
            await client.load(NAME, context_tokens=128, stage_count=2)
        again = mesh.partial(other)
        assert again is not None
        assert again.held_bytes == first
        assert (again.folder / "macmesh-weights.journal").read_bytes() == journal


async def test_only_members_get_weights_and_no_path_is_taken(tmp_path: Path) -> None:
    async with WeightsMesh(tmp_path, 2, holders=[0]) as mesh:
        await mesh.formed()
        model = read_folder(mesh.whole()[0])
        holder = mesh.nodes[0]
        pool = PeerPool(LiveCredentials(load_credentials(mesh.nodes[1].config.data_dir)))
        pool.learn(holder.node_id, [f"127.0.0.1:{holder.config.listen_port}"])
        weights = GrpcWeights(pool)
        try:
            manifest = await weights.manifest(holder.node_id, model.digest)
            assert manifest is not None
            assert {f.name for f in manifest.files if f.head_bytes} == set(model.weight_files)
            for digest in ("", "../..", "0" * 64, str(model.path)):
                assert await weights.manifest(holder.node_id, digest) is None
            file = model.weight_files[0]
            size = (model.path / file).stat().st_size
            for piece in (
                Piece("../models0/tiny/config.json", 0, 10),
                Piece(str(model.path / "config.json"), 0, 10),
                Piece("/etc/passwd", 0, 10),
                Piece(file, size - 1, size + 1),
            ):
                with pytest.raises(RemoteSourceFailedError):
                    [_ async for _ in weights.fetch(holder.node_id, model.digest, [piece])]
                assert await weights.hashes(holder.node_id, model.digest, [piece]) == {}
            good = Piece(file, 8, 100)
            [(piece, content)] = [x async for x in weights.fetch(holder.node_id, model.digest, [good])]
            assert content == (model.path / file).read_bytes()[8:100]
        finally:
            await pool.close()


async def test_a_cluster_loads_a_model_of_a_hub_and_downloads_it_once(tmp_path: Path) -> None:
    source = copy_model(tmp_path / "source")
    with FakeHub({"someone/tiny": source}).running() as hub:
        mesh = WeightsMesh(tmp_path, 2, holders=(), hub_endpoint=hub.endpoint)
        mesh.source = source
        async with mesh:
            await mesh.formed()
            async with mesh.nodes[0].client() as client:
                progress = await client.load("someone/tiny", context_tokens=256, stage_count=2)
                assert progress.phase == "ready"
                assert await client.complete("A plan is", max_tokens=3)
                with pytest.raises(MacmeshError, match="nor can it be had from the hub"):
                    await client.load("someone/else", context_tokens=256)
            status = await mesh.nodes[0].status()
            assert await check_stages(mesh, status) == 2
            model = read_folder(source)
    ranges = [answer for answer in hub.served if answer.range and answer.method == "GET"]
    sent = sum(answer.body_bytes for answer in ranges)
    headers = sum((source / name).stat().st_size for name in model.weight_files) - model.total_bytes
    assert sent == model.total_bytes + headers


async def test_a_node_fetches_before_it_promises_while_another_plan_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def patient(config: Config) -> ClusterSettings:
        return replace(
            cluster_settings(config),
            read_ahead_seconds=9.0,
            plan_rpc_deadline_seconds=20.0,
            prepare_timeout_seconds=20.0,
        )

    monkeypatch.setattr(runtime, "cluster_settings", patient)
    usable = usable_bytes_for(await profile_demo_model(), 2, 256, demo_reserves(RESERVE_BYTES))
    mesh = WeightsMesh(tmp_path, 4, holders=[0], usable_bytes=usable)
    holder, *others = mesh.nodes
    holder.config = replace(holder.config, usable_bytes=1 << 20)  # no room for a stage
    async with mesh:
        await mesh.formed()
        async with holder.client() as client:
            loaded = await client.load(NAME, context_tokens=256)
            assert loaded.deployment is not None
            serving = {stage.node_id for stage in loaded.deployment.stages}
            [outsider] = [node for node in others if node.node_id not in serving]
            victim = next(node for node in others if node is not outsider)
            await client.drain(victim.node_id)
            status = await mesh.until(
                holder,
                lambda s: s.serving_state == "ready" and epoch_text(s.document.plan.epoch) != loaded.epoch,
                "ready without the node",
            )
        assert outsider.node_id in {stage.node_id for stage in status.document.plan.deployments[0].stages}
        records = await asyncio.to_thread(read_logs, [outsider.config.data_dir])
    fetched = [r.seq for r in records if r.kind == Kind.ANNOUNCED and r.facts["event"] == "weights fetched"]
    [promised] = [r.seq for r in records if r.kind == Kind.PROMISED]
    assert fetched
    assert max(fetched) < promised
