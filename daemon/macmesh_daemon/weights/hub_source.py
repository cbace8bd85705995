"""Weights from a hub: headers and small files at once, ranges of weight files when they are wanted.

What is read is of one commit. The digest of config, index and headers must be the one that the plan pins; of
the tensors a hub states no hashes, only of whole files, which are compared once a file is here as a whole.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from macmesh_daemon.models.errors import ModelError, RemoteModelBrokenError
from macmesh_daemon.models.folder import CONFIG_NAME, WEIGHTS_PATTERN
from macmesh_daemon.weights.errors import RemoteContentDiffersError, RemoteSourceFailedError
from macmesh_daemon.weights.partial import About
from macmesh_daemon.weights.store import MAX_SMALL_BYTES, LaidOut, is_plain_name, is_small_name

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from macmesh_daemon.models.hub import HubClient
    from macmesh_daemon.weights.partial import PartialModel
    from macmesh_daemon.weights.pieces import Piece
    from macmesh_daemon.weights.store import ModelStore

#: For one request of a range, which has 16 MiB: a line of half a megabyte per second still makes it.
RANGE_SECONDS: Final = 60.0
#: For config, index, tokenizer and headers of a model together.
HEADERS_SECONDS: Final = 180.0
LAYOUT_SECONDS: Final = HEADERS_SECONDS + 20.0
_REQUESTS_AT_ONCE: Final = 8


class HubSource:
    """A hub. Its client is imported when it is first asked: a daemon that needs no hub starts without it.

    Args:
        endpoint: Its address; empty for that of ``HF_ENDPOINT``, or Hugging Face's own.
    """

    def __init__(self, endpoint: str = "") -> None:
        self._endpoint = endpoint

    async def lay_out(
        self, store: ModelStore, model: str, *, revision: str | None = None, digest: str = ""
    ) -> PartialModel:
        """Lay a model out from its config, index, tokenizer and headers on the hub.

        Args:
            store: Where to.
            model: ``organisation/model``.
            revision: Branch, tag or commit; None for the main branch.
            digest: What it must be; empty for whatever it is.

        Raises:
            ModelError: the hub does not have it, does not show it, or cannot be reached; see `read_hub`.
            RemoteContentDiffersError: it is another model than the digest says.
            LocalWeightsStoreError: it cannot be written here.
        """
        try:
            async with asyncio.timeout(LAYOUT_SECONDS):
                return await asyncio.to_thread(self._lay_out, store, model, revision, digest)
        except TimeoutError:
            raise RemoteSourceFailedError(
                f"the headers of {model} took more than {LAYOUT_SECONDS:g} s"
            ) from None

    async def source(self, about: About) -> HubRanges:
        """The weights of a model that was laid out from a hub."""
        return HubRanges(self._endpoint, about)

    def _lay_out(self, store: ModelStore, model: str, revision: str | None, digest: str) -> PartialModel:
        client = _client(model, self._endpoint, HEADERS_SECONDS)
        with client.errors_told():
            listing = client.list_files(revision)
            names = [name for name in listing.files if is_plain_name(name)]
            weights = sorted(name for name in names if fnmatchcase(name, WEIGHTS_PATTERN))
            if CONFIG_NAME not in names or not weights:
                raise RemoteModelBrokenError(
                    f"{client.name} has no {CONFIG_NAME} or no weights that match {WEIGHTS_PATTERN}"
                )
            with ThreadPoolExecutor(_REQUESTS_AT_ONCE, thread_name_prefix="hub") as pool:
                smalls = {
                    n: pool.submit(client.read_small, n, MAX_SMALL_BYTES) for n in names if is_small_name(n)
                }
                heads = {n: pool.submit(client.read_head, n) for n in weights}
                small = {n: read.result() for n, read in smalls.items()}
                laid_out = {n: LaidOut(*read.result()) for n, read in heads.items()}
        about = About(
            digest,
            names=(model,),
            hub_model=model,
            hub_commit=listing.commit,
            hub_sha256={name: listing.sha256[name] for name in weights if name in listing.sha256},
        )
        try:
            return store.lay_out(about, small, laid_out)
        except RemoteContentDiffersError as problem:
            raise RemoteContentDiffersError(f"{client.name} on the hub: {problem}") from problem


class HubRanges:
    """Ranges of one model's files; see `fetcher.HubWeights`."""

    def __init__(self, endpoint: str, about: About) -> None:
        self._endpoint = endpoint
        self._about = about

    async def fetch(self, pieces: Sequence[Piece]) -> AsyncGenerator[tuple[Piece, bytes], None]:
        """See `HubWeights.fetch`. Pieces that follow each other in a file are read with one request."""
        for run in _runs(pieces):
            begin = run[0].begin
            content = await asyncio.to_thread(self._read, run[0].file, begin, run[-1].end - begin)
            for piece in run:
                yield piece, content[piece.begin - begin : piece.end - begin]

    def _read(self, file: str, begin: int, size: int) -> bytes:
        try:
            about = self._about
            client = _client(about.hub_model, self._endpoint, RANGE_SECONDS, about.hub_commit)
            with client.errors_told():
                return client.read_range(file, begin, size)
        except ModelError as problem:
            raise RemoteSourceFailedError(str(problem)) from problem


def _client(model: str, endpoint: str, deadline_seconds: float, commit: str = "") -> HubClient:
    from macmesh_daemon.models.hub import Hub, HubClient  # noqa: PLC0415  most models come from no hub

    return HubClient(model, Hub(endpoint=endpoint or None, deadline_seconds=deadline_seconds), commit)


def _runs(pieces: Sequence[Piece]) -> list[list[Piece]]:
    runs: list[list[Piece]] = []
    for piece in sorted(pieces):
        if runs and runs[-1][-1].file == piece.file and runs[-1][-1].end == piece.begin:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs
