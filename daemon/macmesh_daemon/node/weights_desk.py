"""Brings the weights of a stage to this node before its worker starts: from the disk, other nodes, or a hub."""

from __future__ import annotations

import asyncio
import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING, Final

from macmesh_daemon.cluster.messages import FetchProgress
from macmesh_daemon.logs import get_logger
from macmesh_daemon.models import LocalModelFolderError, LocalModelNotFoundError
from macmesh_daemon.models.folder import ModelFolder, read_folder
from macmesh_daemon.models.profiler import map_tensors
from macmesh_daemon.weights.errors import (
    LocalWeightsStoreError,
    RemoteContentDiffersError,
    RemoteWeightsError,
    WeightsError,
)
from macmesh_daemon.weights.fetcher import Progress, fetch_pieces
from macmesh_daemon.weights.fetching import Fetching
from macmesh_daemon.weights.layout import lay_out_from_peers
from macmesh_daemon.weights.pieces import pieces_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from macmesh_daemon.clock import Clock
    from macmesh_daemon.cluster.messages import Deployment, ModelRef
    from macmesh_daemon.weights.fetcher import PeerWeights
    from macmesh_daemon.weights.hub_source import HubSource
    from macmesh_daemon.weights.library import Library
    from macmesh_daemon.weights.partial import PartialModel
    from macmesh_daemon.weights.pieces import Piece
    from macmesh_daemon.weights.tensor_map import TensorMap

_log = get_logger(part="weights")

#: For the process that maps the tensors, which imports mlx-lm.
MAP_SECONDS: Final = 120.0
#: How long the others are asked, before a promise, whether they have the model; a promise is waited for 5 s.
ASK_SECONDS: Final = 3.0
#: For this long nothing of a model is taken from a node that sent wrong bytes of it.
QUARANTINE_SECONDS: Final = 900.0


class WeightsDesk:
    """Finds, lays out and fetches models; at most one fetch of a model at a time.

    Args:
        node_id: This node.
        library: What is here.
        resolve_path: Finds the folder of a whole model by name, path and digest; `LocalModelNotFoundError` where
            there is none.
        peers: The other nodes' weights.
        members: Node ids of the other members that may be reached, now.
        hub: The hub.
        cache_dir: Where maps of tensors are kept.
        clock: Time.
        announce: Called with an event and its facts, for the log and for people.
    """

    def __init__(
        self,
        *,
        node_id: str,
        library: Library,
        resolve_path: Callable[[str, str, str], Path],
        peers: PeerWeights,
        members: Callable[[], Sequence[str]],
        hub: HubSource,
        cache_dir: Path,
        clock: Clock,
        announce: Callable[[str, dict[str, object]], None],
    ) -> None:
        self._node_id = node_id
        self._library = library
        self._resolve_path = resolve_path
        self._peers = peers
        self._members = members
        self._hub = hub
        self._cache_dir = cache_dir
        self._clock = clock
        self._announce = announce
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        #: By digest: nodes given up, until when and why.
        self._quarantined: dict[str, dict[str, tuple[float, str]]] = {}

    def health(self) -> tuple[str, ...]:
        """Lines about nodes that sent wrong bytes."""
        now = self._clock.now()
        return tuple(
            f"no weights of model {digest[:12]} are taken from node {node[:8]}: {reason}"
            for digest, nodes in sorted(self._quarantined.items())
            for node, (until, reason) in sorted(nodes.items())
            if now < until
        )

    async def provide(
        self,
        deployment: Deployment,
        stage_index: int,
        told: Callable[[FetchProgress], None],
    ) -> Path:
        """The folder from which the stage's worker can load, once all that it reads is there.

        Args:
            deployment: The plan's.
            stage_index: The stage of this node.
            told: Called with the progress of a fetch; not where everything is here.

        Raises:
            WeightsError: it cannot be brought here; what came stays for the next time.
            LocalModelError: it makes no model.
        """
        model = deployment.model
        if model is None:
            raise LocalWeightsStoreError("the plan names no model")
        if (whole := await self._whole(model)) is not None:
            return whole
        async with self._locks[model.digest]:
            partial = await self._laid_out(model)
            folder = await asyncio.to_thread(read_folder, partial.folder)
            tensors = await self._tensors(folder)
            stage = deployment.stages[stage_index]
            names = _needed(tensors, folder, stage.first_layer, stage.end_layer)
            missing = await asyncio.to_thread(partial.missing, folder.tensors, names)
            if missing:
                await self._fetch(deployment, partial, folder, tensors, names, missing, told)
            return partial.folder

    async def small_files(self, model: ModelRef) -> Path:
        """A folder with the model's config and tokenizer; its weights may be missing.

        Raises:
            WeightsError: no node has them, or they cannot be written here.
        """
        if (whole := await self._whole(model)) is not None:
            return whole
        async with self._locks[model.digest]:
            return (await self._laid_out(model)).folder

    async def obstacle(self, model: ModelRef, needed_bytes: int) -> str:
        """Why a stage with so many bytes of weights cannot be loaded here, where no whole model is; empty if it can.

        Looked at before a promise: a guess from what the others say now and from the room on the disk.
        """
        try:
            partial = await asyncio.to_thread(self._library.store.open, model.digest)
            held = partial.held_bytes if partial is not None else 0
            await asyncio.to_thread(self._library.store.require_room, max(0, needed_bytes - held))
        except WeightsError as error:
            return str(error)
        if partial is not None and held >= needed_bytes:
            return ""
        if model.hub_commit or (partial is not None and partial.about.hub_commit):
            return ""
        return await self._nobody_has(model)

    async def _whole(self, model: ModelRef) -> Path | None:
        """The folder of the whole model on this machine; None where there is none."""
        try:
            return await asyncio.to_thread(self._resolve_path, model.model_id, model.path, model.digest)
        except LocalModelNotFoundError:
            found = await asyncio.to_thread(self._library.folder, model.digest)
            return found.path if found is not None else None

    async def _nobody_has(self, model: ModelRef) -> str:
        """Why the model cannot come from another node; empty where one has something of it."""
        members = self._members()
        reasons: list[str] = []

        async def ask(node: str) -> bool:
            try:
                async with asyncio.timeout(ASK_SECONDS):
                    if await self._peers.manifest(node, model.digest) is not None:
                        return True
                reasons.append(f"node {node[:8]} does not have it")
            except TimeoutError:
                reasons.append(f"node {node[:8]} did not say within {ASK_SECONDS:g} s")
            except RemoteWeightsError as error:
                reasons.append(str(error))
            return False

        if any(await asyncio.gather(*(ask(node) for node in members))):
            return ""
        told = "; ".join(reasons) or "there is no other node"
        return (
            f"model missing on this node, with digest {model.digest[:12]} of {model.model_id!r}, "
            f"and no other node gives it: {told}"
        )

    async def _laid_out(self, model: ModelRef) -> PartialModel:
        partial = await asyncio.to_thread(self._library.store.open, model.digest)
        if partial is not None:
            return partial
        names = tuple(dict.fromkeys(name for name in (model.model_id, model.path) if name))
        try:
            return await lay_out_from_peers(
                self._library.store, model.digest, names, self._peers, self._members()
            )
        except RemoteWeightsError as error:
            if not model.hub_commit:
                raise
            _log.info("headers come from the hub", model=model.model_id, reason=str(error))
        return await self._hub.lay_out(
            self._library.store, model.model_id, revision=model.hub_commit, digest=model.digest
        )

    async def _tensors(self, folder: ModelFolder) -> TensorMap | None:
        """The map of the model's tensors; None where its loader looks at values, so that all must be there."""
        try:
            return await map_tensors(folder, self._cache_dir, deadline_seconds=MAP_SECONDS)
        except LocalModelFolderError as error:
            _log.warning("tensors cannot be told apart: all are fetched", reason=str(error))
            return None

    async def _fetch(
        self,
        deployment: Deployment,
        partial: PartialModel,
        folder: ModelFolder,
        tensors: TensorMap | None,
        names: frozenset[str],
        missing: list[Piece],
        told: Callable[[FetchProgress], None],
    ) -> None:
        digest = folder.digest
        total = sum(piece.size_bytes for piece in pieces_of(folder.tensors, names))
        wanted = sum(piece.size_bytes for piece in missing)
        await asyncio.to_thread(self._library.store.require_room, wanted)
        progress = Progress(total_bytes=total, disk_bytes=total - wanted)
        told(_told(progress))
        hub = await self._hub.source(partial.about) if partial.about.hub_commit else None
        order = _hub_order(deployment, folder, tensors) if hub is not None else {}
        now = self._clock.now()
        given_up = {node for node, (until, _) in self._quarantined.get(digest, {}).items() if now < until}
        machine = Fetching(
            wanted=missing,
            peers=self._members(),
            node_id=self._node_id,
            now=now,
            hub_order=lambda piece: order.get(piece, ()),
            has_hub=hub is not None,
            quarantined=given_up,
        )
        self._announce("weights wanted", {"model": digest[:12], "bytes": wanted, "pieces": len(missing)})
        await fetch_pieces(
            partial,
            machine,
            peers=self._peers,
            hub=hub,
            clock=self._clock,
            progress=progress,
            told=lambda now_here: told(_told(now_here)),
            quarantine=lambda peer, reason: self._give_up(digest, peer, reason),
        )
        await asyncio.to_thread(_compare_with_hub, partial, folder, {piece.file for piece in missing})
        self._announce(
            "weights fetched",
            {
                "model": digest[:12],
                "peer_bytes": progress.peer_bytes,
                "hub_bytes": progress.hub_bytes,
                "disk_bytes": progress.disk_bytes,
                "sources": list(progress.sources),
            },
        )

    def _give_up(self, digest: str, peer: str, reason: str) -> None:
        until = self._clock.now() + QUARANTINE_SECONDS
        self._quarantined.setdefault(digest, {})[peer] = (until, reason)
        _log.error("node given up for weights", node_id=peer, model=digest[:12], reason=reason)
        self._announce(
            "weights source quarantined", {"node_id": peer, "model": digest[:12], "reason": reason}
        )


def _needed(tensors: TensorMap | None, folder: ModelFolder, first: int, end: int) -> frozenset[str]:
    if tensors is None:
        return frozenset(folder.tensors)
    try:
        return tensors.needed(first, end)
    except ValueError as problem:
        raise LocalModelFolderError(f"{folder.path} is not the model of the plan: {problem}") from problem


def _hub_order(
    deployment: Deployment, folder: ModelFolder, tensors: TensorMap | None
) -> Mapping[Piece, tuple[str, ...]]:
    """For each piece of the plan, the nodes whose stages need it, the first stage first."""
    order: dict[Piece, tuple[str, ...]] = {}
    for stage in sorted(deployment.stages, key=lambda stage: stage.index):
        names = _needed(tensors, folder, stage.first_layer, stage.end_layer)
        for piece in pieces_of(folder.tensors, names):
            order[piece] = (*order.get(piece, ()), stage.node_id)
    return order


def _compare_with_hub(partial: PartialModel, folder: ModelFolder, files: set[str]) -> None:
    """Compare files that are whole now with the hash that a hub states for them.

    Raises:
        RemoteContentDiffersError: one has other bytes; it is fetched again the next time.
        LocalWeightsStoreError: one cannot be read.
    """
    for file in sorted(files & partial.about.hub_sha256.keys()):
        of_file = [name for name, tensor in folder.tensors.items() if tensor.file == file]
        if partial.missing(folder.tensors, of_file):
            continue
        try:
            with (partial.folder / file).open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise LocalWeightsStoreError(f"{partial.folder / file} cannot be read: {problem}") from problem
        if found != partial.about.hub_sha256[file]:
            partial.forget(file)
            raise RemoteContentDiffersError(
                f"{file} of {partial.about.hub_model} is not what the hub says it is: it is fetched again"
            )


def _told(progress: Progress) -> FetchProgress:
    return FetchProgress(
        total_bytes=progress.total_bytes,
        disk_bytes=progress.disk_bytes,
        peer_bytes=progress.peer_bytes,
        hub_bytes=progress.hub_bytes,
        source_node_ids=tuple(progress.sources),
    )
