"""Finds models by name, path or digest: on this node, on other members, on a hub; and their profiles."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from macmesh.reasons import Reason
from macmesh.v1 import peer_pb2
from macmesh_daemon.cluster.messages import ModelRef
from macmesh_daemon.logs import get_logger
from macmesh_daemon.models import (
    LocalArchitectureError,
    LocalModelError,
    LocalModelNotFoundError,
    LocalProfileProcessError,
    ModelError,
    RemoteModelBrokenError,
    resolve,
)
from macmesh_daemon.models.folder import is_hub_id, read_folder
from macmesh_daemon.models.profiler import profile_model
from macmesh_daemon.node.call_errors import CallError, from_rpc_error
from macmesh_daemon.node.codec import from_proto
from macmesh_daemon.weights.errors import RemoteContentDiffersError, WeightsError
from macmesh_daemon.weights.partial import is_partial
from macmesh_placement import ModelProfile

if TYPE_CHECKING:
    from macmesh_daemon.config import Config
    from macmesh_daemon.models import ModelFolder
    from macmesh_daemon.node.peers import PeerPool
    from macmesh_daemon.weights.hub_source import HubSource
    from macmesh_daemon.weights.library import Library
    from macmesh_daemon.weights.partial import PartialModel

_log = get_logger(part="models")

#: A 1T-parameter config profiles in seconds; a slow disk with thousands of headers takes longer.
PROFILE_DEADLINE_SECONDS = 120.0
_REASONS: dict[type[LocalModelError], Reason] = {
    LocalModelNotFoundError: Reason.MODEL_NOT_FOUND,
    LocalArchitectureError: Reason.UNSUPPORTED_ARCHITECTURE,
    LocalProfileProcessError: Reason.INTERNAL,
}


class ModelFinder:
    """Answers where a model is and what it costs.

    Args:
        config: Names the models folders.
        node_id: This node.
        peers: The others.
        library: What this node serves and holds in part.
        hub: The hub.
    """

    def __init__(
        self, *, config: Config, node_id: str, peers: PeerPool, library: Library, hub: HubSource
    ) -> None:
        self._config = config
        self._node_id = node_id
        self._peers = peers
        self._library = library
        self._hub = hub
        self._profiles: dict[str, ModelProfile] = {}

    async def profile_here(self, model_id: str) -> tuple[ModelRef, ModelProfile]:
        """The reference and the profile of a model that this node can read.

        Raises:
            CallError: there is no such model here, it is broken, or nobody can run it.
        """
        try:
            folder = await asyncio.to_thread(self._resolved, model_id)
            profile = await self._profile_of(folder)
        except LocalModelError as error:
            reason = _REASONS.get(type(error), Reason.MODEL_BROKEN)
            raise CallError(reason, str(error), {"model": model_id}) from error
        return ModelRef(model_id=model_id, path=str(folder.path), digest=folder.digest), profile

    def _resolved(self, model_id: str) -> ModelFolder:
        """A folder here. One below the models folders is served anyway: others will soon ask for it."""
        folder = resolve(model_id, self._config.models_folders)
        tops = (top.expanduser().resolve() for top in self._config.models_folders)
        if any(folder.path.is_relative_to(top) for top in tops):
            self._library.offer(folder)
        return folder

    async def profile_partial(self, model_id: str) -> tuple[ModelRef, ModelProfile]:
        """The reference and the profile of a model of which this node holds a part, by what it was asked for.

        Raises:
            CallError: there is none of that name here.
        """
        digest = await asyncio.to_thread(self._library.store.named, model_id)
        found = await self.profile_by_digest(digest)
        if found is None:
            raise CallError(
                Reason.MODEL_NOT_FOUND, f"no part of {model_id!r} is on this node", {"model": model_id}
            )
        return found

    async def profile(self, model_id: str, members: tuple[str, ...]) -> tuple[ModelRef, ModelProfile]:
        """As `profile_here`; where this node lacks the model, the first member that has it answers.

        Where no member has it as a whole, a part of it tells as much; else it is looked for on the hub, where the
        name is one of a hub's. What is found there has its headers laid out here.

        Raises:
            CallError: neither a reachable member nor the hub has it.
        """
        try:
            model, profile = await self.profile_here(model_id)
        except CallError as error:
            if error.reason is not Reason.MODEL_NOT_FOUND:
                raise
            missing = error
        else:
            await asyncio.to_thread(self._offer, model)
            return model, profile
        if (found := await self._profile_of_members(model_id, members)) is not None:
            return found
        with contextlib.suppress(CallError):
            return await self.profile_partial(model_id)
        if (found := await self._profile_of_members(model_id, members, is_partial=True)) is not None:
            return found
        if is_hub_id(model_id):
            return await self._profile_from_hub(model_id, missing)
        raise missing

    async def _profile_from_hub(self, model_id: str, missing: CallError) -> tuple[ModelRef, ModelProfile]:
        try:
            partial = await self._hub.lay_out(self._library.store, model_id)
        except (ModelError, WeightsError) as error:
            is_broken = isinstance(error, RemoteModelBrokenError | RemoteContentDiffersError)
            reason = Reason.MODEL_BROKEN if is_broken else Reason.MODEL_NOT_FOUND
            text = f"{missing.message}; nor can it be had from the hub: {error}"
            raise CallError(reason, text, {"model": model_id}) from error
        try:
            return await self._profile_of_part(partial)
        except LocalModelError as error:
            reason = _REASONS.get(type(error), Reason.MODEL_BROKEN)
            raise CallError(reason, str(error), {"model": model_id}) from error

    async def _profile_of_part(self, partial: PartialModel) -> tuple[ModelRef, ModelProfile]:
        about = partial.about
        folder = await asyncio.to_thread(read_folder, partial.folder)
        name = next(iter(about.names), about.digest)
        model = ModelRef(model_id=name, digest=about.digest, hub_commit=about.hub_commit)
        return model, await self._profile_of(replace(folder, model_id=name))

    async def _profile_of(self, folder: ModelFolder) -> ModelProfile:
        profile = self._profiles.get(folder.digest)
        if profile is None:
            profile = await profile_model(
                folder, self._config.data_dir / "profiles", deadline_seconds=PROFILE_DEADLINE_SECONDS
            )
            self._profiles[folder.digest] = profile
        return profile

    async def profile_by_digest(self, digest: str) -> tuple[ModelRef, ModelProfile] | None:
        """Of what this node holds of a model, whole or in part; None where that is nothing."""
        try:
            partial = await asyncio.to_thread(self._library.store.open, digest)
            return await self._profile_of_part(partial) if partial is not None else None
        except (WeightsError, LocalModelError) as error:
            _log.warning("a partial model cannot be profiled", model=digest[:12], error=str(error))
            return None

    def _offer(self, model: ModelRef) -> None:
        """Let other members fetch what a user of this node asked for."""
        with contextlib.suppress(LocalModelError):
            self._library.offer(read_folder(Path(model.path)))

    async def _profile_of_members(
        self, model_id: str, members: tuple[str, ...], *, is_partial: bool = False
    ) -> tuple[ModelRef, ModelProfile] | None:
        for node_id in members:
            stub = self._peers.stub(node_id) if node_id != self._node_id else None
            if stub is None:
                continue
            try:
                response = await stub.ProfileModel(
                    peer_pb2.ProfileModelRequest(model_id=model_id, partial=is_partial),
                    timeout=PROFILE_DEADLINE_SECONDS,
                )
            except grpc.aio.AioRpcError as error:
                passed_on = from_rpc_error(error)
                if passed_on.reason in {Reason.MODEL_NOT_FOUND, Reason.PEER_UNREACHABLE}:
                    continue
                raise passed_on from error
            return from_proto(response.model), ModelProfile.from_json_text(response.profile_json.decode())
        return None

    def folder(self, model: ModelRef) -> ModelFolder:
        """The folder of a whole model: at the path of the node that resolved it, else by name; content must match.

        Reads the headers of its files: call in a thread.

        Raises:
            LocalModelError: there is none, it is broken, or its content differs.
        """
        attempts = [text for text in dict.fromkeys((model.path, model.model_id)) if text]
        error = LocalModelNotFoundError(f"no model folder {model.model_id!r} on this node")
        for attempt in attempts:
            try:
                folder = resolve(attempt, self._config.models_folders)
            except LocalModelNotFoundError as missing:
                error = missing
                continue
            if model.digest and folder.digest != model.digest:
                error = LocalModelNotFoundError(
                    f"{folder.path} holds other content than the model of the plan "
                    f"(digest {folder.digest[:12]}, wanted {model.digest[:12]})"
                )
                continue
            if is_partial(folder.path):
                continue  # what it lacks is fetched first
            self._library.offer(folder)
            return folder
        raise error
