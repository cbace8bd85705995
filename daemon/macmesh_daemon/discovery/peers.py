"""The peers this node was last in a cluster with, kept on disk: they are tried again after a restart."""

import asyncio
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

from macmesh_daemon.clock import Clock, SystemClock, sleep_or_event
from macmesh_daemon.config import split_address
from macmesh_daemon.discovery.base import Candidate, CandidateCallback, Discovery, Source
from macmesh_daemon.discovery.book import CandidateBook
from macmesh_daemon.files import write_durably
from macmesh_daemon.identity import is_node_id

FILE_NAME = "peers.json"
_FORMAT_VERSION = 1
_MAX_ADDRESSES = 8


class PeerBook(Discovery):
    """Remembers where members answered and reports them as candidates.

    Only what answered with its certificate belongs in here: the shell calls ``remember`` after it did. A
    file that cannot be read or written is a health line; the node works without it.
    """

    source: ClassVar[Source] = "peer"

    def __init__(
        self, path: Path, *, own_node_id: str, interval_seconds: float = 5.0, clock: Clock | None = None
    ) -> None:
        """Start empty; ``run`` reads the file.

        Args:
            path: The file, in the node's data folder.
            own_node_id: Never reported.
            interval_seconds: How often all peers are reported.
            clock: For the interval.
        """
        self._path = path
        self._own_node_id = own_node_id
        self._interval_seconds = interval_seconds
        self._clock: Clock = clock or SystemClock()
        self._book = CandidateBook()
        self._wake = asyncio.Event()
        self._changed = False
        self._problem: str | None = None

    def remember(self, node_id: str, addresses: Sequence[str]) -> None:
        """Keep a peer that answered at ``addresses`` (``host:port``, best first).

        Raises:
            ValueError: The id or an address is malformed, or there is no address.
        """
        candidate = self._candidate(node_id, addresses)
        if candidate not in self._book.candidates():
            self._changed = True
            self._wake.set()
        self._book.put(candidate)

    def forget(self, node_id: str) -> None:
        """Drop a peer that was removed from the cluster."""
        if node_id in self._book:
            self._book.drop(node_id)
            self._changed = True
            self._wake.set()

    def peers(self) -> tuple[Candidate, ...]:
        """Return the peers, the one remembered last at the end."""
        return self._book.candidates()

    async def run(self, found: CandidateCallback) -> None:
        """See ``Discovery.run``. Also reads the file at first and writes it after changes."""
        await self._read()
        try:
            while True:
                await self._write()
                for candidate in self._book.candidates():
                    if candidate.node_id != self._own_node_id:
                        found(candidate)
                await sleep_or_event(self._clock, self._interval_seconds, self._wake)
        finally:
            # What was remembered just before the end must be there at the next start.
            await self._write()

    def refresh(self) -> None:
        """See ``Discovery.refresh``."""
        self._wake.set()

    def health(self) -> tuple[str, ...]:
        """See ``Discovery.health``."""
        return () if self._problem is None else (self._problem,)

    def _candidate(self, node_id: str, addresses: Sequence[str]) -> Candidate:
        if not is_node_id(node_id):
            raise ValueError(f"{node_id!r} is not a node id")
        if not addresses:
            raise ValueError(f"peer {node_id} has no address")
        for address in addresses:
            split_address(address)
        return Candidate(node_id, tuple(addresses)[:_MAX_ADDRESSES], self.source)

    async def _read(self) -> None:
        try:
            text = await asyncio.to_thread(self._path.read_text, "utf-8")
            read = [self._candidate(*entry) for entry in _entries(json.loads(text))]
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._problem = f"{self._path}: the last known peers cannot be read: {error}"
            return
        remembered = self._book.candidates()
        for candidate in (*read, *remembered):
            self._book.put(candidate)

    async def _write(self) -> None:
        if not self._changed:
            return
        self._changed = False
        peers = [(peer.node_id or "", peer.addresses) for peer in self._book.candidates()]
        data = json.dumps(peers_file(peers), indent=2).encode()
        try:
            await asyncio.to_thread(write_durably, self._path, data)
            self._problem = None
        except OSError as error:
            self._changed = True
            self._problem = f"{self._path}: the peers cannot be kept for the next start: {error}"


def peers_file(peers: Iterable[tuple[str, Sequence[str]]]) -> dict[str, Any]:
    """The content of the file: node ids and their addresses."""
    entries = [{"node_id": node_id, "addresses": list(addresses)} for node_id, addresses in peers]
    return {"version": _FORMAT_VERSION, "peers": entries}


def _entries(value: Any) -> list[tuple[str, list[str]]]:
    if not isinstance(value, dict) or value.get("version") != _FORMAT_VERSION:
        raise ValueError(f"not of format version {_FORMAT_VERSION}")
    peers = value.get("peers")
    if not isinstance(peers, list):
        raise ValueError("peers is no list")  # noqa: TRY004  one error type for a broken file
    entries: list[tuple[str, list[str]]] = []
    for peer in peers:
        if not isinstance(peer, dict):
            raise ValueError("a peer is no object")  # noqa: TRY004  same
        addresses = peer.get("addresses")
        if not isinstance(addresses, list) or not all(isinstance(item, str) for item in addresses):
            raise ValueError("a peer's addresses are no list of text")
        entries.append((str(peer.get("node_id")), addresses))
    return entries
