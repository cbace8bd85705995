"""Brings the small files and headers of a model here, so that there is a place for its weights."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import aclosing
from typing import TYPE_CHECKING

from macmesh_daemon.weights.errors import (
    RemoteContentDiffersError,
    RemoteNoSourceError,
    RemoteWeightsError,
)
from macmesh_daemon.weights.partial import About, PartialModel
from macmesh_daemon.weights.pieces import Piece
from macmesh_daemon.weights.store import MAX_SMALL_BYTES, LaidOut, is_plain_name, is_small_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from macmesh_daemon.weights.fetcher import PeerWeights
    from macmesh_daemon.weights.library import FileEntry, Manifest
    from macmesh_daemon.weights.store import ModelStore

#: Bytes of small files and headers of one model; the headers of a trillion parameters have some 20 MB.
MAX_LAYOUT_BYTES = 512 << 20
MAX_FILES = 1000


async def lay_out_from_peers(
    store: ModelStore, digest: str, names: tuple[str, ...], peers: PeerWeights, nodes: Sequence[str]
) -> PartialModel:
    """Lay a model out from the first node that has it and whose files are those of the digest.

    Raises:
        RemoteNoSourceError: none has, or gives, them; the message says who was asked and what came of it.
        LocalWeightsStoreError: they cannot be written here.
    """
    reasons: list[str] = []
    for node in nodes:
        try:
            manifest = await peers.manifest(node, digest)
            if manifest is None:
                reasons.append(f"node {node[:8]} does not have it")
                continue
            return await _from_peer(store, manifest, names, peers, node)
        except RemoteWeightsError as error:
            reasons.append(str(error))
    told = "; ".join(reasons) or "there is no other node"
    raise RemoteNoSourceError(f"the model {digest[:12]} is not on this node, and no other gives it: {told}")


async def _from_peer(
    store: ModelStore, manifest: Manifest, names: tuple[str, ...], peers: PeerWeights, node: str
) -> PartialModel:
    wanted = {_piece(entry): entry for entry in manifest.files if _is_wanted(entry)}
    size = sum(piece.size_bytes for piece in wanted)
    if len(manifest.files) > MAX_FILES or size > MAX_LAYOUT_BYTES:
        raise RemoteContentDiffersError(
            f"node {node[:8]} tells of {len(manifest.files)} files with {size} bytes besides the weights"
        )
    small: dict[str, bytes] = {
        entry.name: b"" for entry in manifest.files if is_small_name(entry.name) and not entry.size_bytes
    }
    weights: dict[str, LaidOut] = {}
    async with aclosing(peers.fetch(node, manifest.digest, tuple(wanted))) as arriving:
        async for piece, content in arriving:
            entry = wanted[piece]
            if hashlib.sha256(content).hexdigest() != entry.sha256:
                raise RemoteContentDiffersError(f"node {node[:8]} sends another {entry.name} than it says")
            if entry.head_bytes:
                weights[entry.name] = LaidOut(content, entry.size_bytes)
            else:
                small[entry.name] = content
    about = About(manifest.digest, names, manifest.hub_model, manifest.hub_commit)
    return await asyncio.to_thread(store.lay_out, about, small, weights)


def _is_wanted(entry: FileEntry) -> bool:
    if not is_plain_name(entry.name) or entry.head_bytes > entry.size_bytes:
        return False
    if entry.head_bytes:
        return entry.name.endswith(".safetensors")
    return is_small_name(entry.name) and 0 < entry.size_bytes <= MAX_SMALL_BYTES


def _piece(entry: FileEntry) -> Piece:
    return Piece(entry.name, 0, entry.head_bytes or entry.size_bytes)
